// Products by the instruction that adds four products of 8 bits to each of sixteen sums of 32 bits.
#include <immintrin.h>

#include "instruction_sets.h"

#define LANES 16
#include "vectors.h"
#include "products.h"

namespace {

inline __m512i four_bytes(const int8_t* from) {
    int32_t four;
    memcpy(&four, from, sizeof four);
    return _mm512_set1_epi32(four);
}

inline __m512 halves(const uint8_t* from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

// One block of a tile is on its way into the cache long before it is read. This was the largest gain of all: the processor's own
// prefetch stops at every page.
inline void fetch(const uint8_t* from, int bytes) {
    for (int i = 0; i < bytes; i += 64) _mm_prefetch(reinterpret_cast<const char*>(from + i), _MM_HINT_T1);
}

// Q4_0 and Q4_1. The low halves of a block's bytes are its first sixteen weights, the high halves the others.
template <int TYPE, int M>
inline void nibbles(const uint8_t* tile, const Panel& panel, int64_t ahead, float* out) {
    enum { HEAD = TYPE == TYPE_Q4_1 ? 64 : 32, QUANTS = 256 };
    const uint8_t* quants = tile + panel.groups * HEAD;
    const __m512i low_half = _mm512_set1_epi8(15), high_half = _mm512_set1_epi8(char(240));
    __m512 sums[M];
    for (int m = 0; m < M; ++m) sums[m] = _mm512_setzero_ps();
    for (int64_t group = 0; group < panel.groups; ++group) {
        if (ahead) fetch(tile + group * (HEAD + QUANTS) + ahead, HEAD + QUANTS);
        __m512i low[4], high[4];
        for (int i = 0; i < 4; ++i) {
            const __m512i bytes = _mm512_loadu_si512(quants + group * QUANTS + i * 64);
            low[i] = _mm512_and_si512(bytes, low_half);
            // Few rows: the high halves stay sixteen times too large, and their sum is set right once.
            high[i] = M < 4 ? _mm512_and_si512(bytes, high_half) : _mm512_and_si512(_mm512_srli_epi16(bytes, 4), low_half);
        }
        const __m512 scale = halves(tile + group * HEAD);
        const int8_t* row = panel.quants + group * panel.stride * GROUP;
        const float *scales = panel.scales + group * panel.stride, *totals = panel.sums + group * panel.stride;
        for (int m = 0; m < M; ++m, row += GROUP) {
            __m512i first = _mm512_setzero_si512(), second = _mm512_setzero_si512();
            if (TYPE == TYPE_Q4_0) first = _mm512_set1_epi32(-8 * panel.whole[2 * (group * panel.stride + m)]);
            for (int i = 0; i < 4; ++i) {
                first = _mm512_dpbusd_epi32(first, low[i], four_bytes(row + 4 * i));
                second = _mm512_dpbusd_epi32(second, high[i], four_bytes(row + 16 + 4 * i));
            }
            if (M < 4) second = _mm512_srai_epi32(second, 4);
            const __m512 product = _mm512_cvtepi32_ps(_mm512_add_epi32(first, second));
            sums[m] = _mm512_fmadd_ps(product, _mm512_mul_ps(scale, _mm512_set1_ps(scales[m])), sums[m]);
            if (TYPE == TYPE_Q4_1)
                sums[m] = _mm512_fmadd_ps(halves(tile + group * HEAD + 32), _mm512_set1_ps(totals[m]), sums[m]);
        }
    }
    for (int m = 0; m < M; ++m) _mm512_storeu_ps(out + m * TILE_ROWS, sums[m]);
}

// Q8_0, stored 128 too large: the sum begins with what that adds.
template <int M>
inline void bytes(const uint8_t* tile, const Panel& panel, int64_t ahead, float* out) {
    enum { HEAD = 32, QUANTS = 512 };
    const uint8_t* quants = tile + panel.groups * HEAD;
    __m512 sums[M];
    for (int m = 0; m < M; ++m) sums[m] = _mm512_setzero_ps();
    for (int64_t group = 0; group < panel.groups; ++group) {
        if (ahead) fetch(tile + group * (HEAD + QUANTS) + ahead, HEAD + QUANTS);
        __m512i weights[8];
        for (int i = 0; i < 8; ++i) weights[i] = _mm512_loadu_si512(quants + group * QUANTS + i * 64);
        const __m512 scale = halves(tile + group * HEAD);
        const int8_t* row = panel.quants + group * panel.stride * GROUP;
        for (int m = 0; m < M; ++m, row += GROUP) {
            const int64_t at = group * panel.stride + m;
            __m512i first = _mm512_set1_epi32(-128 * panel.whole[2 * at]), second = _mm512_setzero_si512();
            for (int i = 0; i < 8; i += 2) {
                first = _mm512_dpbusd_epi32(first, weights[i], four_bytes(row + 4 * i));
                second = _mm512_dpbusd_epi32(second, weights[i + 1], four_bytes(row + 4 * i + 4));
            }
            const __m512 product = _mm512_cvtepi32_ps(_mm512_add_epi32(first, second));
            sums[m] = _mm512_fmadd_ps(product, _mm512_mul_ps(scale, _mm512_set1_ps(panel.scales[at])), sums[m]);
        }
    }
    for (int m = 0; m < M; ++m) _mm512_storeu_ps(out + m * TILE_ROWS, sums[m]);
}

template <int TYPE, int M>
inline void some_rows(const uint8_t* tile, const Panel& panel, int64_t ahead, float* out) {
    if (TYPE == TYPE_Q8_0)
        bytes<M>(tile, panel, ahead, out);
    else
        nibbles<TYPE, M>(tile, panel, ahead, out);
}

template <int TYPE>
void product(const BlockType*, const uint8_t* tile, const Panel& panel, int rows, int64_t ahead, float* out) {
    for (int row = 0; row < rows;) {
        const Panel here = panel.from(row);
        float* to = out + row * TILE_ROWS;
        const int left = rows - row, count = left >= 16 ? 16 : left > 8 ? 8 : left;
        switch (count) {
            case 1: some_rows<TYPE, 1>(tile, here, ahead, to); break;
            case 2: some_rows<TYPE, 2>(tile, here, ahead, to); break;
            case 3: some_rows<TYPE, 3>(tile, here, ahead, to); break;
            case 4: some_rows<TYPE, 4>(tile, here, ahead, to); break;
            case 5: some_rows<TYPE, 5>(tile, here, ahead, to); break;
            case 6: some_rows<TYPE, 6>(tile, here, ahead, to); break;
            case 7: some_rows<TYPE, 7>(tile, here, ahead, to); break;
            case 8: some_rows<TYPE, 8>(tile, here, ahead, to); break;
            default: some_rows<TYPE, 16>(tile, here, ahead, to);
        }
        row += count;
        ahead = 0;
    }
}

inline TileProduct product_for(int type) {
    switch (type) {
        case TYPE_Q4_0: return product<TYPE_Q4_0>;
        case TYPE_Q4_1: return product<TYPE_Q4_1>;
        case TYPE_Q8_0: return product<TYPE_Q8_0>;
        default: return plain_product;
    }
}

}  // namespace

#include "attention.h"
#include "pass.h"

INSTRUCTION_SET(avx512vnni_set);
