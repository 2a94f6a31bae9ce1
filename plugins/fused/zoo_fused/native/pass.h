// One pass of a decoder, and one linear layer, for the instruction set of the file that includes this. That file defines
// LANES and, after products.h, `product_for(type)`.
#pragma once

namespace {

// Tokens worked on at once; up to which each worker rounds for itself; panels that a product takes together; bytes.
enum { CHUNK = 256, FEW = 4, SPAN = 4, AHEAD = 12288 };

inline int64_t share(int64_t total, int index, int count) { return total * index / count; }

inline void normalise(const Norm& norm, int kind, const float* from, int64_t width, float* to) {
    int64_t i = 0;
    float mean = 0.0f;
    if (kind == NORM_LAYER) {
        Vec total{};
        for (; i + LANES <= width; i += LANES) total += load(from + i);
        mean = sum_of(total);
        for (; i < width; ++i) mean += from[i];
        mean /= float(width);
    }
    Vec squares{};
    for (i = 0; i + LANES <= width; i += LANES) {
        const Vec v = load(from + i) - mean;
        squares += v * v;
    }
    float square = sum_of(squares);
    for (; i < width; ++i) square += (from[i] - mean) * (from[i] - mean);
    const float inverse = 1.0f / sqrtf(square / float(width) + norm.epsilon);
    for (i = 0; i + LANES <= width; i += LANES) {
        const Vec scaled = (load(from + i) - mean) * inverse * load(norm.weight + i);
        store(to + i, norm.bias == nullptr ? scaled : scaled + load(norm.bias + i));
    }
    for (; i < width; ++i) {
        const float scaled = (from[i] - mean) * inverse * norm.weight[i];
        to[i] = norm.bias == nullptr ? scaled : scaled + norm.bias[i];
    }
}

// Spans of panels that one product takes together: each(first panel, panels, rows of them).
template <typename Each>
inline void in_spans(const Rounded& input, const Each& each) {
    const int64_t panels = (input.rows + PANEL_ROWS - 1) / PANEL_ROWS;
    for (int64_t panel = 0; panel < panels; panel += SPAN) {
        const int64_t count = panels - panel < SPAN ? panels - panel : int64_t(SPAN), left = input.rows - panel * PANEL_ROWS;
        each(panel, count, int(left < count * PANEL_ROWS ? left : count * PANEL_ROWS));
    }
}

// Tiles `first` to `last` of a matrix times all rows; each(tile, first row, rows, product[rows][16]).
template <typename Each>
inline void multiply(const Matrix& matrix, const Rounded& input, int64_t first, int64_t last, const Each& each) {
    const TileProduct product = product_for(matrix.type->number);
    const int64_t size = tile_bytes(matrix.type, matrix.columns);
    alignas(64) float out[SPAN * PANEL_ROWS * TILE_ROWS];
    for (int64_t tile = first; tile < last; ++tile)
        in_spans(input, [&](int64_t panel, int64_t panels, int rows) {
            product(matrix.type, matrix.tiles + tile * size, input, panel, panels, panel == 0 ? AHEAD : 0, out);
            each(tile, panel * PANEL_ROWS, rows, out);
        });
}

// The 16 sums of a tile with their bias; `width` of them are outputs.
inline void add_bias(const Matrix& matrix, int64_t tile, int rows, float* out) {
    if (matrix.bias == nullptr) return;
    const int64_t left = matrix.rows - tile * TILE_ROWS;
    for (int row = 0; row < rows; ++row)
        for (int lane = 0; lane < TILE_ROWS && lane < left; ++lane) out[row * TILE_ROWS + lane] += matrix.bias[tile * TILE_ROWS + lane];
}

// input times matrix -> to[rows][stride], or added to it.
template <bool ADD>
inline void linear(const Matrix& matrix, const Rounded& input, const Worker& worker, float* to, int64_t stride) {
    const int64_t tiles = tile_count(matrix.rows);
    multiply(matrix, input, share(tiles, worker.index, worker.count), share(tiles, worker.index + 1, worker.count),
             [&](int64_t tile, int64_t first, int rows, float* out) {
                 add_bias(matrix, tile, rows, out);
                 const int64_t left = matrix.rows - tile * TILE_ROWS, lanes = left < TILE_ROWS ? left : int64_t(TILE_ROWS);
                 for (int row = 0; row < rows; ++row) {
                     float* at = to + (first + row) * stride + tile * TILE_ROWS;
                     const float* from = out + row * TILE_ROWS;
                     if (lanes == TILE_ROWS) {
                         for (int i = 0; i < TILE_ROWS; i += LANES)
                             store(at + i, ADD ? load(at + i) + load(from + i) : load(from + i));
                         continue;
                     }
                     for (int64_t lane = 0; lane < lanes; ++lane) at[lane] = ADD ? at[lane] + from[lane] : from[lane];
                 }
             });
}

// The widening half of a feed-forward. What 32 outputs give is bent and rounded at once, as the narrowing half reads it.
inline void widen(const Model& model, const Layer& layer, const Rounded& input, const Worker& worker, const Rounded& to) {
    const bool gated = layer.gate.rows > 0;
    const int64_t groups = model.hidden / GROUP;
    alignas(64) float bent[GROUP / TILE_ROWS][SPAN * PANEL_ROWS * TILE_ROWS], factor[SPAN * PANEL_ROWS * TILE_ROWS], group_of[GROUP];
    const auto one = [&](const Matrix& matrix, int64_t tile, int64_t panel, int64_t panels, int rows, float* out) {
        const uint8_t* at = matrix.tiles + tile * tile_bytes(matrix.type, matrix.columns);
        product_for(matrix.type->number)(matrix.type, at, input, panel, panels, panel == 0 ? AHEAD : 0, out);
        add_bias(matrix, tile, rows, out);
    };
    for (int64_t group = share(groups, worker.index, worker.count); group < share(groups, worker.index + 1, worker.count); ++group)
        in_spans(input, [&](int64_t panel, int64_t panels, int rows) {
            for (int half = 0; half < 2; ++half) {
                float* out = bent[half];
                if (gated) one(layer.gate, group * 2 + half, panel, panels, rows, out);
                one(layer.up, group * 2 + half, panel, panels, rows, gated ? factor : out);
                for (int64_t i = 0; i < rows * TILE_ROWS; i += LANES) {
                    const Vec value = activate(model.activation, load(out + i));
                    store(out + i, gated ? value * load(factor + i) : value);
                }
            }
            for (int64_t row = 0; row < rows; ++row) {
                memcpy(group_of, bent[0] + row * TILE_ROWS, TILE_ROWS * sizeof(float));
                memcpy(group_of + TILE_ROWS, bent[1] + row * TILE_ROWS, TILE_ROWS * sizeof(float));
                round_groups(group_of, panel * PANEL_ROWS + row, to, group, group + 1);
            }
        });
}

inline uint8_t* take(uint8_t** from, size_t bytes) {
    uint8_t* taken = *from;
    *from += (bytes + 63) / 64 * 64;
    return taken;
}

struct Sizes {
    int64_t rows, tokens, most;  // rows of the batch and tokens of a row in one chunk, and both multiplied
    int64_t queries;             // that one unit of attention has at most
    size_t shared, own;

    Sizes(const Model& model, const Reading& reading) {
        rows = reading.batch < CHUNK ? reading.batch : int64_t(CHUNK);
        tokens = CHUNK / rows < reading.count ? CHUNK / rows : reading.count;
        if (tokens < 1) tokens = 1;
        most = rows * tokens;
        const int64_t mixed = model.heads * model.head_width, joined = mixed + 2 * model.kv_heads * model.head_width;
        const int64_t widest = mixed > model.width ? mixed : model.width;
        const int64_t chosen = reading.batch * reading.chosen, slots = reading.start + reading.count + LANES;
        queries = model.heads / model.kv_heads;
        if (queries < MOST_QUERIES) queries = MOST_QUERIES;
        shared = size_t(most * (model.width + joined + mixed) * 4 + chosen * model.width * 4) + Rounded::bytes(most, widest) +
                 Rounded::bytes(most, model.hidden) + 1024;
        own = size_t(widest * 4 + model.head_width * (2 * LANES + queries + QUERIES) * 4 + queries * slots * 4) +
              Rounded::bytes(FEW, widest) + 1024;
    }
};

struct Pass {
    const Model& model;
    const Reading& reading;
    const Worker& worker;
    float *tokens, *joined, *mixed, *chosen, *row;  // tokens: the residual; chosen: rows that the head reads; row: of this worker
    Rounded wide;
    uint8_t *narrow_memory, *own_memory;
    Attending attending;

    Pass(const Model& m, const Reading& r, const Worker& w, const Sizes& sizes, uint8_t* shared, uint8_t* own)
        : model(m), reading(r), worker(w) {
        const int64_t width = m.width, across = m.heads * m.head_width, both = across + 2 * m.kv_heads * m.head_width;
        const int64_t widest = across > width ? across : width;
        tokens = reinterpret_cast<float*>(take(&shared, size_t(sizes.most * width * 4)));
        joined = reinterpret_cast<float*>(take(&shared, size_t(sizes.most * both * 4)));
        mixed = reinterpret_cast<float*>(take(&shared, size_t(sizes.most * across * 4)));
        chosen = reinterpret_cast<float*>(take(&shared, size_t(r.batch * r.chosen * width * 4)));
        narrow_memory = take(&shared, Rounded::bytes(sizes.most, widest));
        wide_memory = shared;
        row = reinterpret_cast<float*>(take(&own, size_t(widest * 4)));
        attending.keys = reinterpret_cast<float*>(take(&own, size_t(m.head_width * 2 * LANES * 4)));
        attending.queries = reinterpret_cast<float*>(take(&own, size_t(m.head_width * (sizes.queries + QUERIES) * 4)));
        own_memory = take(&own, Rounded::bytes(FEW, widest));
        attending.scores = reinterpret_cast<float*>(own);
        attending.model = &model;
        attending.reading = &reading;
        attending.joined = joined;
        attending.mixed = mixed;
    }

    // All rows of a matrix rounded, through a norm where one is given. Few rows are rounded by every worker for itself, which
    // takes less time than meeting.
    Rounded rounded(const float* from, int64_t rows, int64_t width, const Norm* norm, float factor) {
        const bool alone = rows <= FEW || worker.count == 1;
        const Rounded to = rounded_in(rows <= FEW ? own_memory : narrow_memory, rows, width);
        const int64_t first = alone ? 0 : share(rows, worker.index, worker.count);
        const int64_t last = alone ? rows : share(rows, worker.index + 1, worker.count);
        for (int64_t i = first; i < last; ++i) {
            const float* source = from + i * width;
            if (norm != nullptr) {
                normalise(*norm, model.norm_kind, source, width, row);
                if (factor != 1.0f)
                    for (int64_t k = 0; k < width; ++k) row[k] *= factor;
                source = row;
            }
            round_row(source, i, to);
        }
        if (!alone) worker.meet();
        return to;
    }

    void embed(int64_t first_row, int64_t rows, int64_t first, int64_t count) {
        const int64_t total = rows * count;
        for (int64_t i = share(total, worker.index, worker.count); i < share(total, worker.index + 1, worker.count); ++i) {
            const int64_t at = (first_row + i / count) * reading.count + first + i % count;
            float* token = tokens + i * model.width;
            read_row(model.embedding, reading.tokens[at], token);
            if (model.position_table != nullptr) {
                const float* added = model.position_table + reading.positions[at] * model.width;
                for (int64_t k = 0; k < model.width; ++k) token[k] += added[k];
            }
        }
        worker.meet();
    }

    void attend(int64_t layer, int64_t first_row, int64_t rows, int64_t first, int64_t count) {
        attending.layer = layer;
        attending.first_row = first_row;
        attending.first = first;
        attending.count = count;
        const int64_t heads = model.kv_heads, units = rows * heads, blocks = attending.blocks();
        for (int64_t unit = worker.index; unit < units; unit += worker.count) attending.place(unit / heads, unit % heads);
        if (blocks > 1) worker.meet();  // with one block each worker reads the keys that it wrote itself
        for (int64_t unit = worker.index; unit < units * blocks; unit += worker.count) {
            const int64_t head = blocks > 1 ? unit / blocks : unit;
            attending.mix(head / heads, head % heads, blocks > 1 ? unit % blocks : 0);
        }
        worker.meet();
    }

    // Tokens `first`.. of some rows through all layers.
    void read(int64_t first_row, int64_t rows, int64_t first, int64_t count) {
        const int64_t total = rows * count, width = model.width, across = model.heads * model.head_width;
        embed(first_row, rows, first, count);
        for (int64_t number = 0; number < model.layers; ++number) {
            const Layer& layer = model.layer[number];
            const Rounded input = rounded(tokens, total, width, &layer.attention_norm, 1.0f);
            float* to = joined;
            for (const Matrix& part : layer.project) {
                if (part.rows) linear<false>(part, input, worker, to, attending.joined_width());
                to += part.rows;
            }
            worker.meet();
            attend(number, first_row, rows, first, count);
            linear<true>(layer.output, rounded(mixed, total, across, nullptr, 1.0f), worker, tokens, width);
            worker.meet();
            wide = rounded_in(wide_memory, total, model.hidden);
            widen(model, layer, rounded(tokens, total, width, &layer.feed_norm, 1.0f), worker, wide);
            worker.meet();
            linear<true>(layer.down, wide, worker, tokens, width);
            worker.meet();
        }
        keep(first_row, rows, first, count);
    }

    // What the head is to read of this chunk is put aside.
    void keep(int64_t first_row, int64_t rows, int64_t first, int64_t count) {
        if (worker.index == 0)
            for (int64_t i = 0; i < rows; ++i)
                for (int64_t n = 0; n < reading.chosen; ++n) {
                    const int64_t index = (first_row + i) * reading.chosen + n;
                    const int64_t t = (reading.at == nullptr ? n : reading.at[index]) - first;
                    if (t >= 0 && t < count)
                        memcpy(chosen + index * model.width, tokens + (i * count + t) * model.width, size_t(model.width) * 4);
                }
        worker.meet();
    }

    void write_logits(int64_t most) {
        const int64_t total = reading.batch * reading.chosen;
        for (int64_t first = 0; first < total; first += most) {
            const int64_t some = total - first < most ? total - first : most;
            const Rounded input = rounded(chosen + first * model.width, some, model.width, &model.norm, model.logit_scale);
            linear<false>(model.head, input, worker, reading.logits + first * model.vocabulary, model.vocabulary);
            worker.meet();
        }
    }

    uint8_t* wide_memory;
};

void run_pass(const Model& model, const Reading& reading, const Worker& worker, uint8_t* shared, uint8_t* own) {
    const Sizes sizes(model, reading);
    Pass pass(model, reading, worker, sizes, shared, own);
    for (int64_t row = 0; row < reading.batch; row += sizes.rows)
        for (int64_t token = 0; token < reading.count; token += sizes.tokens) {
            const int64_t rows = reading.batch - row < sizes.rows ? reading.batch - row : sizes.rows;
            const int64_t count = reading.count - token < sizes.tokens ? reading.count - token : sizes.tokens;
            pass.read(row, rows, token, count);
        }
    pass.write_logits(sizes.most);
}

void sizes_of_pass(const Model& model, const Reading& reading, size_t* shared, size_t* own) {
    const Sizes sizes(model, reading);
    *shared = sizes.shared;
    *own = sizes.own;
}

void run_linear(const Matrix& matrix, const float* from, int64_t rows, float* to, const Worker& worker, uint8_t* memory) {
    const Rounded input = rounded_in(memory, rows, matrix.columns);
    for (int64_t i = share(rows, worker.index, worker.count); i < share(rows, worker.index + 1, worker.count); ++i)
        round_row(from + i * matrix.columns, i, input);
    worker.meet();
    linear<false>(matrix, input, worker, to, matrix.rows);
}

void run_reading(const Matrix& table, const int64_t* rows, int64_t count, float* to) {
    for (int64_t i = 0; i < count; ++i) read_row(table, rows[i], to + i * table.columns);
}

}  // namespace

#define INSTRUCTION_SET(NAME) \
    const InstructionSet NAME = {sizes_of_pass, run_pass, run_linear, run_reading}
