// Products of a tile with rows of activations, in plain C++: for every type, and for every processor. The files of single
// instruction sets put faster ones in place of those for the types that they know.
#pragma once

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace {

// Rows rounded to 8 bits, in panels of at most sixteen. A panel holds, group of 32 after group, the quants of all its rows
// and then the next group's: what one step of a product reads lies together.
struct Rounded {
    int8_t* quants;  // [groups][rows][32] in each panel
    float* scales;   // [groups][rows]
    float* sums;     // the sum of a group's quants times its scale
    int32_t* whole;  // the sum of a group's quants, and of its second half, [groups][rows][2]
    int64_t rows, columns;

    int64_t groups() const { return columns / GROUP; }
    static size_t bytes(int64_t rows, int64_t columns) { return size_t(rows * columns + rows * (columns / GROUP) * 16 + 256); }
};

// Some rows of one panel: `stride` is how many the panel has.
struct Panel {
    const int8_t* quants;
    const float *scales, *sums;
    const int32_t* whole;
    int64_t stride, groups;

    Panel from(int row) const {
        return Panel{quants + row * GROUP, scales + row, sums + row, whole + 2 * row, stride, groups};
    }
};

inline Rounded rounded_in(uint8_t* memory, int64_t rows, int64_t columns) {
    Rounded r;
    const int64_t groups = columns / GROUP;
    r.rows = rows;
    r.columns = columns;
    r.quants = reinterpret_cast<int8_t*>(memory);
    r.scales = reinterpret_cast<float*>(memory + (rows * columns + 63) / 64 * 64);
    r.sums = r.scales + rows * groups;
    r.whole = reinterpret_cast<int32_t*>(r.sums + rows * groups);
    return r;
}

inline int64_t panel_rows(int64_t rows, int64_t panel) {
    const int64_t left = rows - panel * PANEL_ROWS;
    return left < PANEL_ROWS ? left : int64_t(PANEL_ROWS);
}

inline Panel panel_of(const Rounded& r, int64_t panel) {
    const int64_t first = panel * PANEL_ROWS, groups = r.groups();
    return Panel{r.quants + first * r.columns,     r.scales + first * groups,       r.sums + first * groups,
                 r.whole + first * groups * 2,     panel_rows(r.rows, panel), groups};
}

// The sum of sixteen signed bytes.
inline int32_t sum_of_bytes(const int8_t* bytes) {
#if defined(__SSE2__)
    const __m128i moved = _mm_xor_si128(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)), _mm_set1_epi8(char(128)));
    const __m128i halves = _mm_sad_epu8(moved, _mm_setzero_si128());
    return _mm_cvtsi128_si32(_mm_add_epi32(halves, _mm_srli_si128(halves, 8))) - 16 * 128;
#else
    int32_t sum = 0;
    for (int i = 0; i < 16; ++i) sum += bytes[i];
    return sum;
#endif
}

// One group of one row. A group with a NaN or an infinite number has the scale NaN, and so has all that comes of it.
inline void round_group(const float* from, int8_t* quants, float* scale, float* sum, int32_t* whole) {
    IntVec sizes{};  // as bits: those of a size grow with it, and those of infinity and NaN are greater than all
    for (int i = 0; i < GROUP; i += LANES) {
        const Vec v = load(from + i);
        IntVec bits;
        memcpy(&bits, &v, sizeof bits);
        bits &= 0x7fffffff;
        sizes = bits > sizes ? bits : sizes;
    }
    const int32_t most_bits = across(sizes, [](IntVec a, IntVec b) { return a > b ? a : b; })[0];
    float most;
    memcpy(&most, &most_bits, sizeof most);
    const float step = most / 127.0f;
    const float inverse = step >= FLT_MIN && step <= FLT_MAX ? 1.0f / step : 0.0f;
    const Vec magic = all(12582912.0f);
    for (int i = 0; i < GROUP; i += LANES) {
        const Vec moved = rounded_product(load(from + i), inverse) + magic;
        IntVec bits, zero;
        memcpy(&bits, &moved, sizeof bits);
        memcpy(&zero, &magic, sizeof zero);
        const ByteVec bytes = __builtin_convertvector(bits - zero, ByteVec);
        memcpy(quants + i, &bytes, sizeof bytes);
    }
    *scale = step > FLT_MAX || step != step ? NAN : inverse == 0.0f ? 0.0f : step;
    whole[1] = sum_of_bytes(quants + GROUP / 2);
    whole[0] = sum_of_bytes(quants) + whole[1];
    *sum = *scale * float(whole[0]);
}

inline void round_groups(const float* row, int64_t index, const Rounded& to, int64_t first_group, int64_t last_group) {
    const int64_t panel = index / PANEL_ROWS, within = index % PANEL_ROWS, count = panel_rows(to.rows, panel);
    const int64_t base = panel * PANEL_ROWS * to.groups();
    for (int64_t group = first_group; group < last_group; ++group) {
        const int64_t at = base + group * count + within;
        round_group(row + (group - first_group) * GROUP, to.quants + at * GROUP, to.scales + at, to.sums + at, to.whole + 2 * at);
    }
}

inline void round_row(const float* row, int64_t index, const Rounded& to) { round_groups(row, index, to, 0, to.groups()); }

// A group of a tile as whole numbers and their meaning: weight = scale * level + least.
struct Levels {
    int16_t level[GROUP][TILE_ROWS];
    float scale[TILE_ROWS], least[TILE_ROWS];
};

// A scale and a least number of Q4_K in 6 bits each: eight of both in twelve bytes, the last four in pieces (ggml.h).
inline void six_bits(const uint8_t* packed, int row, int index, int* scale, int* least) {
    const auto byte = [&](int i) { return int(packed[i * TILE_ROWS + row]); };
    if (index < 4) {
        *scale = byte(index) & 63;
        *least = byte(index + 4) & 63;
    } else {
        *scale = (byte(index + 4) & 15) | (byte(index - 4) >> 6) << 4;
        *least = byte(index + 4) >> 4 | (byte(index) >> 6) << 4;
    }
}

// Of `rows` rows from `first` on; the others are left as they are.
inline void levels_of(const BlockType* type, const uint8_t* tile, int64_t groups, int64_t group, int first, int rows, Levels* to) {
    const int64_t per_block = type->weights / GROUP, blocks = groups / per_block, block = group / per_block;
    const int part = int(group % per_block);
    const uint8_t* head = tile + block * type->head_bytes * TILE_ROWS;
    const uint8_t* quants = tile + blocks * type->head_bytes * TILE_ROWS + block * (type->bytes - type->head_bytes) * TILE_ROWS;
    for (int row = first; row < first + rows; ++row) {
        const auto byte = [&](int i) { return int(quants[(i / 4 * TILE_ROWS + row) * 4 + i % 4]); };
        const float scale = half_at(head + 2 * row);
        to->scale[row] = scale;
        to->least[row] = 0.0f;
        switch (type->number) {
            case TYPE_Q4_0:
            case TYPE_Q4_1: {
                const int offset = type->number == TYPE_Q4_0 ? 8 : 0;
                for (int i = 0; i < 16; ++i) {
                    to->level[i][row] = int16_t((byte(i) & 15) - offset);
                    to->level[i + 16][row] = int16_t((byte(i) >> 4) - offset);
                }
                if (type->number == TYPE_Q4_1) to->least[row] = half_at(head + 2 * TILE_ROWS + 2 * row);
                break;
            }
            case TYPE_Q8_0:
                for (int i = 0; i < 32; ++i) to->level[i][row] = int16_t(byte(i) - 128);
                break;
            case TYPE_Q4_K: {
                int step, least;
                six_bits(head + 4 * TILE_ROWS, row, part, &step, &least);
                const int shift = part % 2 * 4;
                for (int i = 0; i < 32; ++i) to->level[i][row] = int16_t(byte(part / 2 * 32 + i) >> shift & 15);
                to->scale[row] = scale * float(step);
                to->least[row] = -half_at(head + 2 * TILE_ROWS + 2 * row) * float(least);
                break;
            }
            default: {  // Q6_K: of 128 weights the low nibbles are in 64 bytes, two bits more in 32, a scale for each 16
                const int half = part / 4, quarter = part % 4;
                for (int i = 0; i < 32; ++i) {
                    const int low = byte(half * 64 + quarter % 2 * 32 + i) >> (quarter / 2 * 4) & 15;
                    const int high = byte(128 + half * 32 + i) >> (quarter * 2) & 3;
                    const int8_t step = int8_t(head[(2 + part * 2 + i / 16) * TILE_ROWS + row]);
                    to->level[i][row] = int16_t(((low | high << 4) - 32) * step);
                }
            }
        }
    }
}

// One block of a tile is on its way into the cache long before it is read. This was the largest gain of all: the processor's own
// prefetch stops at every page.
inline void fetch(const uint8_t* from, int bytes) {
    for (int i = 0; i < bytes; i += 64) __builtin_prefetch(from + i, 0, 3);
}

// Rows of a panel times one tile -> out[rows][16]. `ahead` is how far to fetch into the cache before it is needed.
typedef void (*PanelProduct)(const BlockType* type, const uint8_t* tile, const Panel& panel, int rows, int64_t ahead, float* out);

// `panels` panels from `first` on times one tile -> out[rows of all of them][16].
typedef void (*TileProduct)(const BlockType* type, const uint8_t* tile, const Rounded& input, int64_t first, int64_t panels,
                            int64_t ahead, float* out);

template <PanelProduct PRODUCT>
void each_panel(const BlockType* type, const uint8_t* tile, const Rounded& input, int64_t first, int64_t panels, int64_t ahead,
                float* out) {
    for (int64_t i = 0; i < panels; ++i) {
        const Panel panel = panel_of(input, first + i);
        PRODUCT(type, tile, panel, int(panel.stride), i == 0 ? ahead : 0, out + i * PANEL_ROWS * TILE_ROWS);
    }
}

inline void plain_product(const BlockType* type, const uint8_t* tile, const Panel& panel, int rows, int64_t, float* out) {
    Levels levels;
    for (int i = 0; i < rows * TILE_ROWS; ++i) out[i] = 0.0f;
    for (int64_t group = 0; group < panel.groups; ++group) {
        levels_of(type, tile, panel.groups, group, 0, TILE_ROWS, &levels);
        for (int row = 0; row < rows; ++row) {
            const int8_t* quants = panel.quants + (group * panel.stride + row) * GROUP;
            const float scale = panel.scales[group * panel.stride + row], sum = panel.sums[group * panel.stride + row];
            int32_t total[TILE_ROWS] = {};
            for (int i = 0; i < GROUP; ++i)
                for (int lane = 0; lane < TILE_ROWS; ++lane) total[lane] += int32_t(levels.level[i][lane]) * quants[i];
            for (int lane = 0; lane < TILE_ROWS; ++lane)
                out[row * TILE_ROWS + lane] += float(total[lane]) * (levels.scale[lane] * scale) + levels.least[lane] * sum;
        }
    }
}

// The weights of one row of a matrix, as float32: what an embedding looks up.
inline void read_row(const Matrix& table, int64_t row, float* to) {
    Levels levels;
    const int lane = int(row % TILE_ROWS);
    const uint8_t* tile = table.tiles + row / TILE_ROWS * tile_bytes(table.type, table.columns);
    for (int64_t group = 0; group < table.columns / GROUP; ++group) {
        levels_of(table.type, tile, table.columns / GROUP, group, lane, 1, &levels);
        for (int i = 0; i < GROUP; ++i)
            to[group * GROUP + i] = levels.scale[lane] * float(levels.level[i][lane]) + levels.least[lane];
    }
}

}  // namespace
