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

inline __m256 small_numbers(__m128i bytes, bool is_signed) {
    return _mm256_cvtepi32_ps(is_signed ? _mm256_cvtepi8_epi32(bytes) : _mm256_cvtepu8_epi32(bytes));
}

// See vnni.h; of one half of the tile's rows.
inline void scales_of_q4_k(const uint8_t* head, int side, __m256* scales, __m256* least) {
    const __m256 scale = halves(head + side * 16), minimum = halves(head + 32 + side * 16);
    const __m128i six = _mm_set1_epi8(63), four = _mm_set1_epi8(15), two = _mm_set1_epi8(48);
    const auto row = [&](int i) { return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(head + 64 + i * 16 + side * 8)); };
    const auto top = [&](int i) { return _mm_and_si128(_mm_srli_epi16(row(i), 2), two); };
    for (int i = 0; i < 8; ++i) {
        const __m128i s = i < 4 ? _mm_and_si128(row(i), six) : _mm_or_si128(_mm_and_si128(row(i + 4), four), top(i - 4));
        const __m128i m = i < 4 ? _mm_and_si128(row(i + 4), six)
                                : _mm_or_si128(_mm_and_si128(_mm_srli_epi16(row(i + 4), 4), four), top(i));
        scales[i] = _mm256_mul_ps(scale, small_numbers(s, false));
        least[i] = _mm256_mul_ps(minimum, small_numbers(m, false));
    }
}

// Q4_K and Q6_K, as in vnni.h. Eight pairs of products of at most 15 * 127 fit into 16 bits, and two of 63 * 127.
template <int TYPE, int M>
inline void k_blocks(const uint8_t* tile, const Panel& panel, int64_t ahead, float* out) {
    enum { HEAD = TYPE == TYPE_Q4_K ? 256 : 288, QUANTS = TYPE == TYPE_Q4_K ? 2048 : 3072 };
    const uint8_t* quants = tile + panel.groups / 8 * HEAD;
    const __m256i four = _mm256_set1_epi8(15), two = _mm256_set1_epi8(48), ones = _mm256_set1_epi16(1);
    __m256 sums[2][M];
    for (int m = 0; m < M; ++m) sums[0][m] = sums[1][m] = _mm256_setzero_ps();
    for (int64_t block = 0; block < panel.groups / 8; ++block, quants += QUANTS) {
        if (ahead) fetch(tile + block * (HEAD + QUANTS) + ahead, HEAD + QUANTS);
        const uint8_t* head = tile + block * HEAD;
        for (int side = 0; side < 2; ++side) {
            __m256 scales[TYPE == TYPE_Q4_K ? 8 : 16], least[8];
            if (TYPE == TYPE_Q4_K)
                scales_of_q4_k(head, side, scales, least);
            else
                for (int i = 0; i < 16; ++i) {
                    const uint8_t* from = head + 32 + i * 16 + side * 8;
                    const __m128i steps = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
                    scales[i] = _mm256_mul_ps(halves(head + side * 16), small_numbers(steps, true));
                }
            for (int part = 0; part < 8; ++part) {
                __m256i weights[8];
                for (int i = 0; i < 8; ++i) {
                    if (TYPE == TYPE_Q4_K) {
                        const __m256i bytes = eight(quants + (part / 2 * 8 + i) * 64 + side * 32);
                        weights[i] = _mm256_and_si256(part % 2 ? _mm256_srli_epi16(bytes, 4) : bytes, four);
                    } else {
                        const __m256i low = eight(quants + (part / 4 * 16 + part % 2 * 8 + i) * 64 + side * 32);
                        const __m256i high = eight(quants + (32 + part / 4 * 8 + i) * 64 + side * 32);
                        const __m256i bits = _mm256_and_si256(part % 4 / 2 ? _mm256_srli_epi16(low, 4) : low, four);
                        const __m256i moved = part % 4 == 0   ? _mm256_slli_epi16(high, 4)
                                              : part % 4 == 1 ? _mm256_slli_epi16(high, 2)
                                              : part % 4 == 2 ? high
                                                              : _mm256_srli_epi16(high, 2);
                        weights[i] = _mm256_or_si256(bits, _mm256_and_si256(moved, two));
                    }
                }
                const int64_t group = block * 8 + part;
                for (int m = 0; m < M; ++m) {
                    const int64_t at = group * panel.stride + m;
                    const int8_t* row = panel.quants + at * GROUP;
                    __m256i total[4];  // of two vectors each: eight weights of a row
                    for (int i = 0; i < 4; ++i)
                        total[i] = _mm256_add_epi16(_mm256_maddubs_epi16(weights[2 * i], four_bytes(row + 8 * i)),
                                                    _mm256_maddubs_epi16(weights[2 * i + 1], four_bytes(row + 8 * i + 4)));
                    const __m256 step = _mm256_set1_ps(panel.scales[at]);
                    if (TYPE == TYPE_Q4_K) {
                        const __m256i all_of = _mm256_add_epi16(_mm256_add_epi16(total[0], total[1]), _mm256_add_epi16(total[2], total[3]));
                        const __m256 product = _mm256_cvtepi32_ps(_mm256_madd_epi16(all_of, ones));
                        sums[side][m] = _mm256_fmadd_ps(product, _mm256_mul_ps(scales[part], step), sums[side][m]);
                        sums[side][m] = _mm256_fnmadd_ps(least[part], _mm256_set1_ps(panel.sums[at]), sums[side][m]);
                        continue;
                    }
                    const int32_t second = panel.whole[2 * at + 1], first = panel.whole[2 * at] - second;
                    for (int half = 0; half < 2; ++half) {  // weights are 32 too large
                        const __m256i pair = _mm256_add_epi32(_mm256_madd_epi16(total[2 * half], ones), _mm256_madd_epi16(total[2 * half + 1], ones));
                        const __m256i whole = _mm256_sub_epi32(pair, _mm256_set1_epi32(32 * (half ? second : first)));
                        const __m256 factor = _mm256_mul_ps(scales[2 * part + half], step);
                        sums[side][m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole), factor, sums[side][m]);
                    }
                }
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
    else if (TYPE == TYPE_Q4_K || TYPE == TYPE_Q6_K)
        k_blocks<TYPE, M>(tile, panel, ahead, out);
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
        case TYPE_Q4_0: return each_panel<product<TYPE_Q4_0>>;
        case TYPE_Q4_1: return each_panel<product<TYPE_Q4_1>>;
        case TYPE_Q8_0: return each_panel<product<TYPE_Q8_0>>;
        case TYPE_Q4_K: return each_panel<product<TYPE_Q4_K>>;
        default: return each_panel<product<TYPE_Q6_K>>;
    }
}

}  // namespace

#include "attention.h"
#include "pass.h"

INSTRUCTION_SET(avx2_set);
