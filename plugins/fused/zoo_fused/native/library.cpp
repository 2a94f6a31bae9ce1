// What Python calls. Everything is checked here once more before a pointer is used: an error is a message and nothing written.
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <new>
#include <vector>

#include "instruction_sets.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#ifndef ZOO_FUSED_KEY
#define ZOO_FUSED_KEY "unknown"
#endif
#ifndef ZOO_FUSED_AMX  // whether amx.cpp is part of this: not every compiler can compile it
#define ZOO_FUSED_AMX 0
#endif

#define PUBLIC extern "C" __attribute__((visibility("default")))

namespace {

enum { ERROR_BYTES = 512 };

// Writes a message and returns 1.
__attribute__((format(printf, 2, 3))) int refuse(char* error, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error, ERROR_BYTES, format, arguments);
    va_end(arguments);
    return 1;
}

// Memory of one call; null where there is none.
struct Memory {
    uint8_t* at = nullptr;
    explicit Memory(size_t bytes) {
        void* found = nullptr;
        if (posix_memalign(&found, 64, bytes) == 0) at = static_cast<uint8_t*>(found);
    }
    ~Memory() { free(at); }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
};

enum { SET_PORTABLE, SET_AVX2, SET_AVX512VNNI, SET_AMX, SETS };

#if defined(__x86_64__)
// AMX's tiles are 8 KB of state for each thread: a process has them when the processor has int8 products of tiles and the
// system, asked once, grants them.
bool tiles_granted() {
#if defined(__linux__)
    static const bool granted = [] {
        enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18, AMX_TILE = 1 << 24, AMX_INT8 = 1 << 25 };
        unsigned a, b, c, d;
        if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & (AMX_TILE | AMX_INT8)) != (AMX_TILE | AMX_INT8)) return false;
        return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
    }();
    return granted;
#else
    return false;
#endif
}
#endif

bool supported(int set) {
    switch (set) {
        case SET_PORTABLE: return true;
#if defined(__x86_64__)
        case SET_AVX2:
            return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
        case SET_AVX512VNNI:
            return supported(SET_AVX2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                   __builtin_cpu_supports("avx512vnni");
        case SET_AMX: return ZOO_FUSED_AMX && supported(SET_AVX512VNNI) && tiles_granted();
#endif
        default: return false;
    }
}

const InstructionSet* instruction_set(int64_t set) {
    if (set < 0 || set >= SETS || !supported(int(set))) return nullptr;
    switch (set) {
#if defined(__x86_64__)
        case SET_AVX2: return &avx2_set;
        case SET_AVX512VNNI: return &avx512vnni_set;
#if ZOO_FUSED_AMX
        case SET_AMX: return &amx_set;
#endif
#endif
        default: return &portable_set;
    }
}

// Where the bytes of a row's block go: each(byte in the row's blocks, byte in the tiles, how many).
template <typename Each>
void permute(const BlockType* type, int64_t columns, int64_t row, const Each& each) {
    const int64_t blocks = columns / type->weights, lane = row % TILE_ROWS;
    const int64_t tile = row / TILE_ROWS * tile_bytes(type, columns), quant_bytes = type->bytes - type->head_bytes;
    for (int64_t block = 0; block < blocks; ++block) {
        int64_t to = tile + block * type->head_bytes * TILE_ROWS;
        for (int number = 0; number < type->fields_count; ++number) {
            const Field& field = type->fields[number];
            if (number == type->head_fields) to = tile + (blocks * type->head_bytes + block * quant_bytes) * TILE_ROWS;
            const int64_t from = block * type->bytes + field.offset;
            for (int i = 0; i < field.count; ++i, to += field.unit * TILE_ROWS)
                each(from + i * field.unit, to + lane * field.unit, field.unit);
        }
    }
}

// Copies a piece of 1, 2 or 4 bytes; `flip` changes the sign bit of each (Q8_0's quants, whose pieces have 4).
inline void copy_piece(uint8_t* to, const uint8_t* from, int bytes, bool flip) {
    if (bytes == 4) {
        uint32_t piece;
        memcpy(&piece, from, 4);
        piece ^= flip ? 0x80808080u : 0u;
        memcpy(to, &piece, 4);
    } else {
        memcpy(to, from, size_t(bytes));
    }
}

int check_matrix(int64_t number, int64_t rows, int64_t columns, int64_t bytes, const BlockType** type, char* error) {
    *type = block_type(number);
    if (*type == nullptr) return refuse(error, "blocks of type %lld are not known here", (long long)number);
    if (rows < 1 || columns < 1 || rows > INT64_C(1) << 31 || columns > INT64_C(1) << 31 || columns % (*type)->weights)
        return refuse(error, "a matrix of %lld rows and %lld columns is none of blocks of %d weights", (long long)rows,
                      (long long)columns, (*type)->weights);
    const int64_t needed = tile_count(rows) * tile_bytes(*type, columns);
    if (bytes != needed)
        return refuse(error, "tiles of %lld rows and %lld columns take %lld bytes, got %lld", (long long)rows, (long long)columns,
                      (long long)needed, (long long)bytes);
    return 0;
}

bool infinite(const uint8_t* half) { return (half[1] & 0x7c) == 0x7c; }

}  // namespace

PUBLIC const char* zoo_fused_key() { return ZOO_FUSED_KEY; }

PUBLIC int zoo_fused_supports(int set) { return set >= 0 && set < SETS && supported(set); }

PUBLIC int zoo_fused_repack(int64_t number, const uint8_t* blocks, int64_t rows, int64_t columns, uint8_t* tiles, int64_t bytes,
                            char* error) {
    const BlockType* type;
    if (check_matrix(number, rows, columns, bytes, &type, error)) return 1;
    const int64_t row_bytes = columns / type->weights * type->bytes, row_blocks = columns / type->weights;
    for (int64_t block = 0; block < rows * row_blocks; ++block)
        for (int offset : type->halves)
            if (offset >= 0 && infinite(blocks + block * type->bytes + offset))
                return refuse(error, "block %lld of row %lld has a scale that is no finite number: the weights are damaged",
                              (long long)(block % row_blocks), (long long)(block / row_blocks));
    if (rows % TILE_ROWS) {
        const int64_t tile = tile_bytes(type, columns);
        memset(tiles + (tile_count(rows) - 1) * tile, 0, size_t(tile));
    }
    const bool signs = type->number == TYPE_Q8_0;
    for (int64_t row = 0; row < rows; ++row) {
        const uint8_t* from = blocks + row * row_bytes;
        permute(type, columns, row,
                [&](int64_t at, int64_t to, int unit) { copy_piece(tiles + to, from + at, unit, signs && unit == 4); });
    }
    return 0;
}

PUBLIC int zoo_fused_unpack(int64_t number, const uint8_t* tiles, int64_t bytes, int64_t rows, int64_t columns, uint8_t* blocks,
                            char* error) {
    const BlockType* type;
    if (check_matrix(number, rows, columns, bytes, &type, error)) return 1;
    const int64_t row_bytes = columns / type->weights * type->bytes;
    const bool signs = type->number == TYPE_Q8_0;
    for (int64_t row = 0; row < rows; ++row) {
        uint8_t* to = blocks + row * row_bytes;
        permute(type, columns, row,
                [&](int64_t at, int64_t from, int unit) { copy_piece(to + at, tiles + from, unit, signs && unit == 4); });
    }
    return 0;
}

// Large pages for what is read once a token: a page of 4 KB is read in less time than its address takes to look up.
PUBLIC void zoo_fused_large_pages(uint8_t* memory, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    const int64_t page = INT64_C(1) << 21;
    uint8_t* first = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(memory) + page - 1) / page * page);
    if (first + page <= memory + bytes) madvise(first, size_t((memory + bytes - first) / page * page), MADV_HUGEPAGE);
#else
    (void)memory, (void)bytes;
#endif
}

PUBLIC int zoo_fused_read_rows(int64_t number, const uint8_t* tiles, int64_t bytes, int64_t rows, int64_t columns,
                               const int64_t* chosen, int64_t count, float* to, int64_t set, char* error) {
    const BlockType* type;
    if (check_matrix(number, rows, columns, bytes, &type, error)) return 1;
    const InstructionSet* functions = instruction_set(set);
    if (functions == nullptr) return refuse(error, "this machine does not have instruction set %lld", (long long)set);
    for (int64_t i = 0; i < count; ++i)
        if (chosen[i] < 0 || chosen[i] >= rows)
            return refuse(error, "row %lld is outside a table of %lld rows", (long long)chosen[i], (long long)rows);
    functions->read_rows(Matrix{type, rows, columns, tiles, nullptr}, chosen, count, to);
    return 0;
}

namespace {

struct LinearJob {
    const InstructionSet* functions;
    Matrix matrix;
    const float* from;
    int64_t rows;
    float* to;
    uint8_t* memory;
};

void linear_job(void* context, const Worker& worker) {
    const LinearJob& job = *static_cast<LinearJob*>(context);
    job.functions->linear(job.matrix, job.from, job.rows, job.to, worker, job.memory);
}

}  // namespace

PUBLIC int zoo_fused_linear(int64_t number, const uint8_t* tiles, int64_t bytes, int64_t outputs, int64_t columns, const float* bias,
                            const float* from, int64_t rows, float* to, int64_t set, int64_t threads, char* error) {
    const BlockType* type;
    if (check_matrix(number, outputs, columns, bytes, &type, error)) return 1;
    const InstructionSet* functions = instruction_set(set);
    if (functions == nullptr) return refuse(error, "this machine does not have instruction set %lld", (long long)set);
    if (rows < 0 || threads < 1) return refuse(error, "rows must not be negative and threads at least 1");
    const int64_t most = 512;  // rows at a time: what they are rounded to stays in the cache
    const Memory memory(size_t((most < rows ? most : rows) * columns * 2 + 4096));
    if (memory.at == nullptr) return refuse(error, "there is no memory for %lld rows", (long long)rows);
    for (int64_t first = 0; first < rows; first += most) {
        const int64_t some = rows - first < most ? rows - first : most;
        LinearJob job{functions, {type, outputs, columns, tiles, bias}, from + first * columns, some, to + first * outputs, memory.at};
        run_on_threads(int(threads < 64 ? threads : 64), linear_job, &job);
    }
    return 0;
}

// One pass of a decoder; `zoo_fused/native.py` has the same fields in the same order.
struct StepArguments {
    const uint8_t* arena;
    const int64_t* plan;
    const double* numbers;
    const float *cosine, *sine, *position_table;
    const int64_t *tokens, *positions, *at;
    const uint8_t* valid;
    float *store, *logits;
    int64_t arena_bytes, plan_length, numbers_length, table_positions;
    int64_t batch, count, chosen, start;
    int64_t valid_stride;
    int64_t store_layers, store_batch, store_heads, store_capacity, store_width;
    int64_t stride_layer, stride_pair, stride_batch, stride_head;
    int64_t set, threads;
};

namespace {

// Reads the plan of a model, number after number, and checks each against the arena.
struct Plan {
    const StepArguments& given;
    char* error;
    int64_t at = 0, number_at = 0;
    bool wrong = false;

    int64_t next(int64_t least, int64_t most, const char* what) {
        if (wrong) return least;
        const int64_t value = at < given.plan_length ? given.plan[at] : least - 1;
        if (value < least || value > most) {
            wrong = true;
            refuse(error, "the plan's %s must be from %lld to %lld, got %lld at %lld", what, (long long)least, (long long)most,
                   (long long)value, (long long)at);
        }
        ++at;
        return value;
    }

    float number(const char* what) {
        if (wrong) return 0.0f;
        if (number_at >= given.numbers_length) {
            wrong = true;
            refuse(error, "the plan has no number for its %s", what);
            return 0.0f;
        }
        return float(given.numbers[number_at++]);
    }

    const uint8_t* place(int64_t bytes, int64_t alignment, const char* what) {
        const int64_t offset = next(0, given.arena_bytes - bytes, what);
        if (!wrong && (offset % alignment || bytes > given.arena_bytes)) {
            wrong = true;
            refuse(error, "the plan's %s is not at a multiple of %lld inside its arena", what, (long long)alignment);
        }
        return wrong ? nullptr : given.arena + offset;
    }

    // -1: none.
    const float* floats(int64_t count, bool needed, const char* what) {
        if (!wrong && !needed && at < given.plan_length && given.plan[at] == -1) {
            ++at;
            return nullptr;
        }
        return reinterpret_cast<const float*>(place(count * 4, 4, what));
    }

    Matrix matrix(int64_t rows, int64_t columns, const char* what) {
        Matrix found{block_type(next(0, 64, what)), rows, columns, nullptr, nullptr};
        if (!wrong && (found.type == nullptr || columns % found.type->weights)) {
            wrong = true;
            refuse(error, "the plan's %s is of a type that is not known here, or does not divide %lld columns", what,
                   (long long)columns);
        }
        if (wrong) return found;
        found.tiles = place(tile_count(rows) * tile_bytes(found.type, columns), 64, what);
        found.bias = floats(rows, false, what);
        return found;
    }

    Norm norm(int64_t width, const char* what) {
        Norm found;
        found.weight = floats(width, true, what);
        found.bias = floats(width, false, what);
        found.epsilon = number(what);
        return found;
    }
};

int read_plan(const StepArguments& given, Model* model, std::vector<Layer>* layers, char* error) {
    const int64_t most = INT64_C(1) << 24;
    Plan plan{given, error};
    model->layers = plan.next(1, 4096, "number of layers");
    model->width = plan.next(1, most, "width");
    model->kv_heads = plan.next(1, 65536, "number of key/value heads");
    model->heads = plan.next(1, 65536, "number of heads");
    model->head_width = plan.next(1, 65536, "width of a head");
    model->hidden = plan.next(GROUP, most, "hidden width");
    model->vocabulary = plan.next(1, most, "vocabulary");
    model->norm_kind = int(plan.next(NORM_RMS, NORM_LAYER, "norm"));
    model->feed_kind = int(plan.next(FEED_DENSE, FEED_GATED, "feed-forward"));
    model->activation = int(plan.next(ACT_SILU, ACT_SQUARED_RELU, "activation"));
    model->scale = plan.number("scale of scores");
    model->logit_scale = plan.number("scale of logits");
    if (plan.wrong) return 1;
    if (model->heads % model->kv_heads || model->hidden % GROUP || model->width % GROUP ||
        model->heads * model->head_width % GROUP || (given.cosine != nullptr && model->head_width % 2))
        return refuse(error, "the plan's widths must be multiples of %d, its heads of its key/value heads", GROUP);
    const int64_t across = model->heads * model->head_width, joined = across + 2 * model->kv_heads * model->head_width;
    model->embedding = plan.matrix(model->vocabulary, model->width, "embedding");
    model->head = plan.matrix(model->vocabulary, model->width, "head");
    model->norm = plan.norm(model->width, "last norm");
    for (int64_t number = 0; number < model->layers && !plan.wrong; ++number) {
        Layer layer;
        layer.attention_norm = plan.norm(model->width, "norm before attention");
        const int64_t parts = plan.next(1, 3, "number of projections"), sizes[3] = {across, (joined - across) / 2, (joined - across) / 2};
        for (int64_t part = 0; part < 3; ++part) {
            layer.project[part] = Matrix{nullptr, 0, model->width, nullptr, nullptr};
            if (part < parts) layer.project[part] = plan.matrix(parts == 1 ? joined : sizes[part], model->width, "query, key or value");
        }
        if (parts == 2) return refuse(error, "the plan's projections must be one or three");
        layer.output = plan.matrix(model->width, across, "output of attention");
        layer.feed_norm = plan.norm(model->width, "norm before the feed-forward");
        layer.gate = Matrix{nullptr, 0, model->width, nullptr, nullptr};
        if (model->feed_kind == FEED_GATED) layer.gate = plan.matrix(model->hidden, model->width, "gate");
        layer.up = plan.matrix(model->hidden, model->width, "up");
        layer.down = plan.matrix(model->width, model->hidden, "down");
        layers->push_back(layer);
    }
    model->layer = layers->data();
    return plan.wrong ? 1 : 0;
}

int check_reading(const StepArguments& given, const Model& model, char* error) {
    const int64_t most = INT64_C(1) << 31;
    if (given.batch < 1 || given.count < 1 || given.chosen < 0 || given.start < 0 || given.threads < 1 || given.batch > most ||
        given.count > most / given.batch || given.chosen > most / given.batch)
        return refuse(error, "a step needs tokens and threads, and no negative start or number of rows to give");
    if (given.store_layers != model.layers || given.store_batch != given.batch || given.store_heads != model.kv_heads ||
        given.store_width != model.head_width || given.store_capacity < given.count ||
        given.start > given.store_capacity - given.count)
        return refuse(error, "the cache is of %lld layers, %lld rows, %lld heads of %lld and %lld slots: too few, or of another model",
                      (long long)given.store_layers, (long long)given.store_batch, (long long)given.store_heads,
                      (long long)given.store_width, (long long)given.store_capacity);
    const int64_t total = given.batch * given.count;
    if (given.at == nullptr && given.chosen && given.chosen != given.count)
        return refuse(error, "every token is chosen, or `at` says which");
    for (int64_t i = 0; i < total; ++i) {
        if (given.tokens[i] < 0 || given.tokens[i] >= model.vocabulary)
            return refuse(error, "token ids must be from 0 to %lld, got %lld", (long long)model.vocabulary - 1, (long long)given.tokens[i]);
        if ((given.cosine != nullptr || given.position_table != nullptr) &&
            (given.positions[i] < 0 || given.positions[i] >= given.table_positions))
            return refuse(error, "positions must be from 0 to %lld, got %lld", (long long)given.table_positions - 1,
                          (long long)given.positions[i]);
    }
    if (given.at != nullptr)
        for (int64_t i = 0; i < given.batch * given.chosen; ++i)
            if (given.at[i] < 0 || given.at[i] >= given.count)
                return refuse(error, "indices of tokens must be from 0 to %lld, got %lld", (long long)given.count - 1, (long long)given.at[i]);
    return 0;
}

struct StepJob {
    const InstructionSet* functions;
    const Model& model;
    const Reading& reading;
    uint8_t *shared, *own;
    size_t own_bytes;
};

void step_job(void* context, const Worker& worker) {
    const StepJob& job = *static_cast<StepJob*>(context);
    job.functions->pass(job.model, job.reading, worker, job.shared, job.own + size_t(worker.index) * job.own_bytes);
}

int step(const StepArguments& given, char* error) {
    Model model{};
    std::vector<Layer> layers;
    if (read_plan(given, &model, &layers, error) || check_reading(given, model, error)) return 1;
    const InstructionSet* functions = instruction_set(given.set);
    if (functions == nullptr) return refuse(error, "this machine does not have instruction set %lld", (long long)given.set);
    model.cosine = given.cosine;
    model.sine = given.sine;
    model.position_table = given.position_table;
    const Reading reading{given.batch,        given.count,       given.chosen,       given.start,       given.store_capacity,
                          given.tokens,       given.positions,   given.at,           given.valid,       given.valid_stride,
                          given.store,        given.stride_layer, given.stride_pair, given.stride_batch, given.stride_head,
                          given.logits};
    const int threads = int(given.threads < 64 ? given.threads : 64);
    size_t shared, own;
    functions->sizes_of_pass(model, reading, &shared, &own);
    own = (own + 4095) / 4096 * 4096;
    const Memory memory((shared + 4095) / 4096 * 4096 + own * size_t(threads));
    if (memory.at == nullptr) return refuse(error, "there is no memory for a step of %lld tokens", (long long)given.count);
    StepJob job{functions, model, reading, memory.at, memory.at + (shared + 4095) / 4096 * 4096, own};
    run_on_threads(threads, step_job, &job);
    return 0;
}

}  // namespace

PUBLIC int zoo_fused_step(const StepArguments* given, char* error) {
    try {
        return step(*given, error);
    } catch (const std::bad_alloc&) {
        return refuse(error, "there is no memory for the step");
    }
}
