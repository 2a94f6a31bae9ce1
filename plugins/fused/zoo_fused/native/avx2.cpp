// Products by AVX2: pairs of products of 8 bits in sums of 16, which hold a whole block of 4-bit weights, or one pair of 8-bit ones.
#include <immintrin.h>

#include "instruction_sets.h"

#define LANES 8
#include "vectors.h"
#include "products.h"

namespace {

inline __m256i four_bytes(const int8_t* from) {
    int32_t four;
    memcpy(&four, from, sizeof four);
    return _mm256_set1_epi32(four);
}

inline __m256 halves(const uint8_t* from) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

// See avx512vnni.cpp.
inline void fetch(const uint8_t* from, int bytes) {
    for (int i = 0; i < bytes; i += 64) _mm_prefetch(reinterpret_cast<const char*>(from + i), _MM_HINT_T1);
}

inline __m256i eight(const uint8_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }

// Q4_0 and Q4_1, eight rows of the tile at a time. Eight sums of two products of at most 15 * 127 fit into 16 bits.
template <int TYPE, int M>
inline void nibbles(const uint8_t* tile, const Panel& panel, int64_t ahead, float* out) {
    enum { HEAD = TYPE == TYPE_Q4_1 ? 64 : 32, QUANTS = 256 };
    const uint8_t* quants = tile + panel.groups * HEAD;
    const __m256i low_half = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    __m256 sums[2][M];
    for (int m = 0; m < M; ++m) sums[0][m] = sums[1][m] = _mm256_setzero_ps();
    for (int64_t group = 0; group < panel.groups; ++group) {
        if (ahead) fetch(tile + group * (HEAD + QUANTS) + ahead, HEAD + QUANTS);
        for (int side = 0; side < 2; ++side) {
            const uint8_t* from = quants + group * QUANTS + side * 32;
            const __m256 scale = halves(tile + group * HEAD + side * 16);
            __m256i total[M];
            for (int i = 0; i < 4; ++i) {
                const __m256i bytes = eight(from + i * 64), low = _mm256_and_si256(bytes, low_half);
                const __m256i high = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), low_half);
                for (int m = 0; m < M; ++m) {
                    const int8_t* row = panel.quants + (group * panel.stride + m) * GROUP;
                    const __m256i both = _mm256_add_epi16(_mm256_maddubs_epi16(low, four_bytes(row + 4 * i)),
                                                          _mm256_maddubs_epi16(high, four_bytes(row + 16 + 4 * i)));
                    total[m] = i == 0 ? both : _mm256_add_epi16(total[m], both);
                }
            }
            for (int m = 0; m < M; ++m) {
                const int64_t at = group * panel.stride + m;
                __m256i whole = _mm256_madd_epi16(total[m], ones);
                if (TYPE == TYPE_Q4_0) whole = _mm256_sub_epi32(whole, _mm256_set1_epi32(8 * panel.whole[2 * at]));
                const __m256 product = _mm256_cvtepi32_ps(whole);
                sums[side][m] = _mm256_fmadd_ps(product, _mm256_mul_ps(scale, _mm256_set1_ps(panel.scales[at])), sums[side][m]);
                if (TYPE == TYPE_Q4_1)
                    sums[side][m] = _mm256_fmadd_ps(halves(tile + group * HEAD + 32 + side * 16),
                                                    _mm256_set1_ps(panel.sums[at]), sums[side][m]);
            }
        }
    }
    for (int m = 0; m < M; ++m)
        for (int side = 0; side < 2; ++side) _mm256_storeu_ps(out + m * TILE_ROWS + side * 8, sums[side][m]);
}

// Q8_0. Two unsigned products of 255 * 127 would not fit into 16 bits; of sizes up to 128, with the sign moved over to the
// activation, they do.
template <int M>
inline void bytes(const uint8_t* tile, const Panel& panel, int64_t ahead, float* out) {
    enum { HEAD = 32, QUANTS = 512 };
    const uint8_t* quants = tile + panel.groups * HEAD;
    const __m256i flip = _mm256_set1_epi8(char(128)), ones = _mm256_set1_epi16(1);
    __m256 sums[2][M];
    for (int m = 0; m < M; ++m) sums[0][m] = sums[1][m] = _mm256_setzero_ps();
    for (int64_t group = 0; group < panel.groups; ++group) {
        if (ahead) fetch(tile + group * (HEAD + QUANTS) + ahead, HEAD + QUANTS);
        for (int side = 0; side < 2; ++side) {
            const __m256 scale = halves(tile + group * HEAD + side * 16);
            __m256i total[M];
            for (int m = 0; m < M; ++m) total[m] = _mm256_setzero_si256();
            for (int i = 0; i < 8; ++i) {
                const __m256i weight = _mm256_xor_si256(eight(quants + group * QUANTS + i * 64 + side * 32), flip);
                const __m256i size = _mm256_abs_epi8(weight);
                for (int m = 0; m < M; ++m) {
                    const __m256i row = four_bytes(panel.quants + (group * panel.stride + m) * GROUP + 4 * i);
                    const __m256i pairs = _mm256_maddubs_epi16(size, _mm256_sign_epi8(row, weight));
                    total[m] = _mm256_add_epi32(total[m], _mm256_madd_epi16(pairs, ones));
                }
            }
            for (int m = 0; m < M; ++m) {
                const __m256 factor = _mm256_mul_ps(scale, _mm256_set1_ps(panel.scales[group * panel.stride + m]));
                sums[side][m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(total[m]), factor, sums[side][m]);
            }
        }
    }
    for (int m = 0; m < M; ++m)
        for (int side = 0; side < 2; ++side) _mm256_storeu_ps(out + m * TILE_ROWS + side * 8, sums[side][m]);
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
        const int left = rows - row, count = left >= 4 ? 4 : left;
        switch (count) {
            case 1: some_rows<TYPE, 1>(tile, here, ahead, to); break;
            case 2: some_rows<TYPE, 2>(tile, here, ahead, to); break;
            case 3: some_rows<TYPE, 3>(tile, here, ahead, to); break;
            default: some_rows<TYPE, 4>(tile, here, ahead, to);
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

INSTRUCTION_SET(avx2_set);
