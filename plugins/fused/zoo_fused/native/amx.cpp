// For processors with AMX: whole panels are multiplied by tiles of the processor, what is left over by AVX512-VNNI. A tile holds
// sixteen rows of 64 bytes, and one instruction multiplies a panel's sixteen rows by the sixteen outputs of our own tiles. Sums are
// made in the order of vnni.h, so both give the same bits.
#include <immintrin.h>

#include "instruction_sets.h"

#define LANES 16
#include "vectors.h"
#include "products.h"
#include "vnni.h"

namespace {

enum { BLOCK_GROUPS = 16 };  // unpacked at once: they stay in the first cache

// Weights of some groups as signed bytes, and what they mean; a piece is what shares a scale.
struct Unpacked {
    alignas(64) int8_t quants[BLOCK_GROUPS][GROUP / 4][TILE_ROWS * 4];
    __m512 scale[BLOCK_GROUPS * 2], least[BLOCK_GROUPS];
};

inline void put(int8_t* to, __m512i weights, int offset) {
    _mm512_store_si512(to, _mm512_sub_epi8(weights, _mm512_set1_epi8(char(offset))));
}

template <int TYPE>
inline void unpack_block(const uint8_t* tile, int64_t groups, int64_t first, int64_t count, int64_t ahead, Unpacked* to) {
    const __m512i four = _mm512_set1_epi8(15);
    if (TYPE == TYPE_Q4_0 || TYPE == TYPE_Q4_1 || TYPE == TYPE_Q8_0) {
        enum { HEAD = TYPE == TYPE_Q4_1 ? 64 : 32, QUANTS = TYPE == TYPE_Q8_0 ? 512 : 256 };
        for (int64_t i = 0; i < count; ++i) {
            const uint8_t *head = tile + (first + i) * HEAD, *from = tile + groups * HEAD + (first + i) * QUANTS;
            if (ahead) fetch(tile + (first + i) * (HEAD + QUANTS) + ahead, HEAD + QUANTS);
            to->scale[i] = halves(head);
            if (TYPE == TYPE_Q4_1) to->least[i] = halves(head + 32);
            for (int k = 0; k < QUANTS / 64; ++k) {
                const __m512i bytes = _mm512_loadu_si512(from + k * 64);
                if (TYPE == TYPE_Q8_0) {
                    _mm512_store_si512(to->quants[i][k], _mm512_xor_si512(bytes, _mm512_set1_epi8(char(128))));
                    continue;
                }
                put(to->quants[i][k], _mm512_and_si512(bytes, four), TYPE == TYPE_Q4_0 ? 8 : 0);
                put(to->quants[i][k + 4], _mm512_and_si512(_mm512_srli_epi16(bytes, 4), four), TYPE == TYPE_Q4_0 ? 8 : 0);
            }
        }
        return;
    }
    for (int64_t block = 0; block < count / 8; ++block) {
        enum { HEAD = KBytes<TYPE>::HEAD, QUANTS = KBytes<TYPE>::QUANTS };
        const int64_t number = first / 8 + block;
        __m512 scales[16], least[8];
        if (ahead) fetch(tile + number * (HEAD + QUANTS) + ahead, HEAD + QUANTS);
        k_scales<TYPE>(tile + number * HEAD, scales, least);
        for (int part = 0; part < 8; ++part) {
            const int64_t i = block * 8 + part;
            __m512i weights[8];
            k_weights<TYPE>(tile + groups / 8 * HEAD + number * QUANTS, part, weights);
            for (int k = 0; k < 8; ++k) put(to->quants[i][k], weights[k], TYPE == TYPE_Q6_K ? 32 : 0);
            if (TYPE == TYPE_Q4_K) {
                to->scale[i] = scales[part];
                to->least[i] = _mm512_sub_ps(_mm512_setzero_ps(), least[part]);
            } else {
                to->scale[2 * i] = scales[2 * part];
                to->scale[2 * i + 1] = scales[2 * part + 1];
            }
        }
    }
}

// As the processor reads it (Intel's manual, "tile configuration"): how long and how many the rows of each of its tiles are.
struct alignas(64) TileShapes {
    uint8_t palette = 1, start = 0, unused[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};

enum { SETS = 4, FIRST_ROWS = 4, FIRST_WEIGHTS = 6, TILES = 8 };

// Sixteen rows times the weights of a piece -> to[16][16], by one of four sets of tiles. The compilers' own macros for tiles take
// only numbers, as they are written.
template <int SET>
inline void piece_product(const int8_t* rows, const int8_t* weights, int32_t* to) {
#define BY_TILES(SUMS, ROWS, WEIGHTS)            \
    _tile_loadd(ROWS, rows, GROUP);              \
    _tile_loadd(WEIGHTS, weights, TILE_ROWS * 4); \
    _tile_zero(SUMS);                            \
    _tile_dpbssd(SUMS, ROWS, WEIGHTS);           \
    _tile_stored(SUMS, to, TILE_ROWS * 4)
    if (SET == 0) {
        BY_TILES(0, 4, 6);
    } else if (SET == 1) {
        BY_TILES(1, 5, 7);
    } else if (SET == 2) {
        BY_TILES(2, 4, 6);
    } else {
        BY_TILES(3, 5, 7);
    }
#undef BY_TILES
}

// The tiles of this thread, as long as this lives. PIECE: weights that share a scale.
template <int PIECE>
struct Tiles {
    Tiles() {
        TileShapes shapes;
        for (int tile = 0; tile < TILES; ++tile) {
            shapes.rows[tile] = tile < FIRST_WEIGHTS ? PANEL_ROWS : PIECE / 4;
            shapes.row_bytes[tile] = tile >= FIRST_ROWS && tile < FIRST_WEIGHTS ? PIECE : TILE_ROWS * 4;
        }
        _tile_loadconfig(&shapes);
    }
    ~Tiles() { _tile_release(); }
};

// One whole panel times unpacked groups `first`.. , added to out[16][16]. A product takes some fifty cycles: three more begin before
// it is read.
template <int TYPE>
struct PanelBlock {
    enum { PIECES = TYPE == TYPE_Q6_K ? 2 : 1, PIECE = GROUP / PIECES, LEAST = TYPE == TYPE_Q4_1 || TYPE == TYPE_Q4_K };
    const int8_t* rows;
    const float *scales, *totals;
    const Unpacked& weights;
    int64_t pieces;
    int32_t (*whole)[PANEL_ROWS * TILE_ROWS];  // of each set

    template <int SET>
    inline __attribute__((always_inline)) void begin(int64_t index) {
        if (index < pieces)
            piece_product<SET>(rows + index / PIECES * (PANEL_ROWS * GROUP) + index % PIECES * PIECE,
                               weights.quants[0][0] + index * (PIECE * TILE_ROWS), whole[SET]);
    }

    template <int SET>
    inline __attribute__((always_inline)) void end(int64_t index, __m512 (&sums)[PANEL_ROWS]) {
        if (index >= pieces) return;
        begin<(SET + SETS - 1) % SETS>(index + SETS - 1);
        const float *scale_of = scales + index / PIECES * PANEL_ROWS, *total_of = totals + index / PIECES * PANEL_ROWS;
        const __m512 scale = weights.scale[index], least = weights.least[index / PIECES];
#pragma GCC unroll 16
        for (int m = 0; m < PANEL_ROWS; ++m) {
            const __m512 piece = _mm512_cvtepi32_ps(_mm512_load_si512(whole[SET] + m * TILE_ROWS));
            sums[m] = _mm512_fmadd_ps(piece, _mm512_mul_ps(scale, _mm512_set1_ps(scale_of[m])), sums[m]);
            if (LEAST) sums[m] = _mm512_fmadd_ps(least, _mm512_set1_ps(total_of[m]), sums[m]);
        }
    }
};

template <int TYPE>
inline void panel_block(const Panel& panel, int64_t first, int64_t count, const Unpacked& weights, bool begin, float* out) {
    using Block = PanelBlock<TYPE>;
    const int64_t at = first * PANEL_ROWS;
    alignas(64) int32_t whole[SETS][PANEL_ROWS * TILE_ROWS];
    Block block{panel.quants + at * GROUP, panel.scales + at, panel.sums + at, weights, count * Block::PIECES, whole};
    __m512 sums[PANEL_ROWS];
#pragma GCC unroll 16
    for (int m = 0; m < PANEL_ROWS; ++m) sums[m] = begin ? _mm512_setzero_ps() : _mm512_load_ps(out + m * TILE_ROWS);
    block.template begin<0>(0);
    block.template begin<1>(1);
    block.template begin<2>(2);
    for (int64_t index = 0; index < block.pieces; index += SETS) {
        block.template end<0>(index, sums);
        block.template end<1>(index + 1, sums);
        block.template end<2>(index + 2, sums);
        block.template end<3>(index + 3, sums);
    }
#pragma GCC unroll 16
    for (int m = 0; m < PANEL_ROWS; ++m) _mm512_store_ps(out + m * TILE_ROWS, sums[m]);
}

template <int TYPE>
void panels_product(const BlockType* type, const uint8_t* tile, const Rounded& input, int64_t first, int64_t panels, int64_t ahead,
                    float* out) {
    const int64_t whole = panel_of(input, first + panels - 1).stride == PANEL_ROWS ? panels : panels - 1, groups = input.groups();
    if (whole > 0) {
        const Tiles<TYPE == TYPE_Q6_K ? 16 : 32> tiles;
        Unpacked weights;
        for (int64_t group = 0; group < groups; group += BLOCK_GROUPS) {
            const int64_t count = groups - group < BLOCK_GROUPS ? groups - group : int64_t(BLOCK_GROUPS);
            unpack_block<TYPE>(tile, groups, group, count, ahead, &weights);
            for (int64_t panel = 0; panel < whole; ++panel)
                panel_block<TYPE>(panel_of(input, first + panel), group, count, weights, group == 0,
                                  out + panel * PANEL_ROWS * TILE_ROWS);
        }
    }
    if (whole < panels)
        each_panel<product<TYPE>>(type, tile, input, first + whole, 1, whole ? 0 : ahead, out + whole * PANEL_ROWS * TILE_ROWS);
}

inline TileProduct product_for(int type) {
    switch (type) {
        case TYPE_Q4_0: return panels_product<TYPE_Q4_0>;
        case TYPE_Q4_1: return panels_product<TYPE_Q4_1>;
        case TYPE_Q8_0: return panels_product<TYPE_Q8_0>;
        case TYPE_Q4_K: return panels_product<TYPE_Q4_K>;
        default: return panels_product<TYPE_Q6_K>;
    }
}

}  // namespace

#include "attention.h"
#include "pass.h"

INSTRUCTION_SET(amx_set);
