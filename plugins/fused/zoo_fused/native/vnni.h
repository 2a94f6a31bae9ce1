// Products by the instruction that adds four products of 8 bits to each of sixteen sums of 32 bits (AVX512-VNNI).
#pragma once

namespace {

inline __m512i four_bytes(const int8_t* from) {
    int32_t four;
    memcpy(&four, from, sizeof four);
    return _mm512_set1_epi32(four);
}

inline __m512 halves(const uint8_t* from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
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
#pragma GCC unroll 16
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
#pragma GCC unroll 16
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

inline __m512 small_numbers(__m128i bytes, bool is_signed) {
    return _mm512_cvtepi32_ps(is_signed ? _mm512_cvtepi8_epi32(bytes) : _mm512_cvtepu8_epi32(bytes));
}

// Scales and least numbers of the eight groups of a block of Q4_K: 6 bits each, the last four in pieces (`six_bits`).
inline void scales_of_q4_k(const uint8_t* head, __m512* scales, __m512* least) {
    const __m512 scale = halves(head), minimum = halves(head + 32);
    const __m128i six = _mm_set1_epi8(63), four = _mm_set1_epi8(15), two = _mm_set1_epi8(48);
    const auto row = [&](int i) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(head + 64 + i * 16)); };
    const auto top = [&](int i) { return _mm_and_si128(_mm_srli_epi16(row(i), 2), two); };
    for (int i = 0; i < 8; ++i) {
        const __m128i s = i < 4 ? _mm_and_si128(row(i), six) : _mm_or_si128(_mm_and_si128(row(i + 4), four), top(i - 4));
        const __m128i m = i < 4 ? _mm_and_si128(row(i + 4), six)
                                : _mm_or_si128(_mm_and_si128(_mm_srli_epi16(row(i + 4), 4), four), top(i));
        scales[i] = _mm512_mul_ps(scale, small_numbers(s, false));
        least[i] = _mm512_mul_ps(minimum, small_numbers(m, false));
    }
}

// Bytes of a block of Q4_K or Q6_K in a tile.
template <int TYPE>
struct KBytes {
    enum { HEAD = TYPE == TYPE_Q4_K ? 256 : 288, QUANTS = TYPE == TYPE_Q4_K ? 2048 : 3072 };
};

// The scales of a block, of each group or of each half of one, and the least numbers of Q4_K's groups.
template <int TYPE>
inline void k_scales(const uint8_t* head, __m512* scales, __m512* least) {
    if (TYPE == TYPE_Q4_K) return scales_of_q4_k(head, scales, least);
    for (int i = 0; i < 16; ++i) {
        const __m128i steps = _mm_loadu_si128(reinterpret_cast<const __m128i*>(head + 32 + i * 16));
        scales[i] = _mm512_mul_ps(halves(head), small_numbers(steps, true));
    }
}

// The weights of group `part` of a block, four of each row in a vector: as they are in Q4_K, 32 too large in Q6_K.
template <int TYPE>
inline void k_weights(const uint8_t* quants, int part, __m512i* weights) {
    const __m512i four = _mm512_set1_epi8(15), two = _mm512_set1_epi8(48);
    for (int i = 0; i < 8; ++i) {
        if (TYPE == TYPE_Q4_K) {
            const __m512i bytes = _mm512_loadu_si512(quants + (part / 2 * 8 + i) * 64);
            weights[i] = _mm512_and_si512(part % 2 ? _mm512_srli_epi16(bytes, 4) : bytes, four);
            continue;
        }
        const __m512i low = _mm512_loadu_si512(quants + (part / 4 * 16 + part % 2 * 8 + i) * 64);
        const __m512i high = _mm512_loadu_si512(quants + (32 + part / 4 * 8 + i) * 64);
        const __m512i bits = _mm512_and_si512(part % 4 / 2 ? _mm512_srli_epi16(low, 4) : low, four);
        // Bits 2 * (part % 4) and the next of a byte go to places 4 and 5; what comes over from its neighbour is masked off.
        const __m512i moved = part % 4 == 0   ? _mm512_slli_epi16(high, 4)
                              : part % 4 == 1 ? _mm512_slli_epi16(high, 2)
                              : part % 4 == 2 ? high
                                              : _mm512_srli_epi16(high, 2);
        weights[i] = _mm512_or_si512(bits, _mm512_and_si512(moved, two));
    }
}

// Q4_K and Q6_K: blocks of eight groups, with scales in few bits for each group or each half of one.
template <int TYPE, int M>
inline void k_blocks(const uint8_t* tile, const Panel& panel, int64_t ahead, float* out) {
    enum { HEAD = KBytes<TYPE>::HEAD, QUANTS = KBytes<TYPE>::QUANTS };
    const uint8_t* quants = tile + panel.groups / 8 * HEAD;
    __m512 sums[M];
    for (int m = 0; m < M; ++m) sums[m] = _mm512_setzero_ps();
    for (int64_t block = 0; block < panel.groups / 8; ++block, quants += QUANTS) {
        if (ahead) fetch(tile + block * (HEAD + QUANTS) + ahead, HEAD + QUANTS);
        __m512 scales[16], least[8];
        k_scales<TYPE>(tile + block * HEAD, scales, least);
        for (int part = 0; part < 8; ++part) {
            __m512i weights[8];
            k_weights<TYPE>(quants, part, weights);
            const int64_t group = block * 8 + part;
            const int8_t* row = panel.quants + group * panel.stride * GROUP;
#pragma GCC unroll 16
            for (int m = 0; m < M; ++m, row += GROUP) {
                const int64_t at = group * panel.stride + m;
                __m512i first = _mm512_setzero_si512(), second = _mm512_setzero_si512();
                if (TYPE == TYPE_Q6_K) {  // weights are 32 too large
                    first = _mm512_set1_epi32(-32 * (panel.whole[2 * at] - panel.whole[2 * at + 1]));
                    second = _mm512_set1_epi32(-32 * panel.whole[2 * at + 1]);
                }
                for (int i = 0; i < 4; ++i) {
                    first = _mm512_dpbusd_epi32(first, weights[i], four_bytes(row + 4 * i));
                    second = _mm512_dpbusd_epi32(second, weights[i + 4], four_bytes(row + 16 + 4 * i));
                }
                const __m512 step = _mm512_set1_ps(panel.scales[at]);
                if (TYPE == TYPE_Q4_K) {
                    const __m512 product = _mm512_cvtepi32_ps(_mm512_add_epi32(first, second));
                    sums[m] = _mm512_fmadd_ps(product, _mm512_mul_ps(scales[part], step), sums[m]);
                    sums[m] = _mm512_fnmadd_ps(least[part], _mm512_set1_ps(panel.sums[at]), sums[m]);
                } else {
                    sums[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(first), _mm512_mul_ps(scales[2 * part], step), sums[m]);
                    sums[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(second), _mm512_mul_ps(scales[2 * part + 1], step), sums[m]);
                }
            }
        }
    }
    for (int m = 0; m < M; ++m) _mm512_storeu_ps(out + m * TILE_ROWS, sums[m]);
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

}  // namespace
