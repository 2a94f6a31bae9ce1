// Vectors of floats as wide as the instruction set has them, in GCC's own notation (clang has the same). LANES is defined by the
// file that includes this. Everything here is in an unnamed namespace: each instruction set has its own code, and the linker
// must never take one for another.
#pragma once

#include <float.h>
#include <math.h>

namespace {

typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef int32_t IntVec __attribute__((vector_size(4 * LANES)));
typedef int8_t ByteVec __attribute__((vector_size(LANES)));

inline Vec load(const float* from) {
    Vec v;
    memcpy(&v, from, sizeof v);
    return v;
}

inline void store(float* to, Vec v) { memcpy(to, &v, sizeof v); }

inline Vec all(float x) { return x - Vec{}; }

// Of a vector and itself turned by half, a quarter, ... of its width: each lane ends with the whole.
template <typename V, typename Join>
inline V across(V v, const Join& join) {
#pragma GCC unroll 4
    for (int width = LANES / 2; width > 0; width /= 2) {
        IntVec turned;
        for (int i = 0; i < LANES; ++i) turned[i] = (i + width) % LANES;
        v = join(v, __builtin_shuffle(v, turned));
    }
    return v;
}

inline float sum_of(Vec v) {
    return across(v, [](Vec a, Vec b) { return a + b; })[0];
}

// A product that is rounded before anything is added to it, where the compiler would make one step of both.
inline Vec rounded_product(Vec a, float b) {
    Vec product = a * b;
#if defined(__x86_64__)
    __asm__("" : "+x"(product));
#elif defined(__aarch64__)
    __asm__("" : "+w"(product));
#endif
    return product;
}

inline Vec greater(Vec a, Vec b) { return a > b ? a : b; }

inline float greatest_of(Vec v) { return across(v, greater)[0]; }

// e^x: 2^n times a polynomial for what is left over, within 2 units of the last place; below -87 it is 0, or nearly so.
inline Vec exponential(Vec x) {
    const Vec low = all(-87.0f), high = all(88.0f);
    Vec y = x < low ? low : x;
    y = y > high ? high : y;
    const Vec magic = all(12582912.0f);  // 1.5 * 2^23: a sum with it is rounded to a whole number
    const Vec n = (y * 1.44269504f + magic) - magic;
    Vec r = y - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    Vec p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const IntVec power = (__builtin_convertvector(n, IntVec) + 127) << 23;
    Vec two_to_n;
    memcpy(&two_to_n, &power, sizeof power);
    p = p * two_to_n;
    p = x < low ? Vec{} : p;
    return x != x ? x : p;  // NaN stays NaN
}

inline Vec silu(Vec x) { return x / (1.0f + exponential(-x)); }

// tanh by e^2x, which loses nothing that the product with x shows.
inline Vec gelu_tanh(Vec x) {
    const Vec inner = (x + x * x * x * 0.044715f) * 0.7978845608f;
    return x / (1.0f + exponential(-2.0f * inner));
}

inline Vec gelu(Vec x) {
    float parts[LANES];
    memcpy(parts, &x, sizeof x);
    for (float& part : parts) part = 0.5f * part * (1.0f + erff(part * 0.70710678f));
    return load(parts);
}

inline Vec activate(int kind, Vec x) {
    const Vec positive = x > Vec{} ? x : (x != x ? x : Vec{});
    switch (kind) {
        case ACT_SILU: return silu(x);
        case ACT_GELU: return gelu(x);
        case ACT_GELU_TANH: return gelu_tanh(x);
        case ACT_RELU: return positive;
        default: return positive * positive;
    }
}

inline float half_to_float(uint16_t half) {
    const uint32_t sign = uint32_t(half & 0x8000) << 16, exponent = half >> 10 & 31, fraction = half & 1023;
    if (exponent == 0) {
        const float small = float(fraction) * 5.9604644775390625e-8f;  // 2^-24
        return sign ? -small : small;
    }
    const uint32_t bits = sign | (exponent == 31 ? 255u : exponent + 112) << 23 | fraction << 13;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

inline float half_at(const uint8_t* from) {
    uint16_t half;
    memcpy(&half, from, sizeof half);
    return half_to_float(half);
}

}  // namespace
