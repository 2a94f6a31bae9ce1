// For processors with AVX512-VNNI.
#include <immintrin.h>

#include "instruction_sets.h"

#define LANES 16
#include "vectors.h"
#include "products.h"
#include "vnni.h"

namespace {

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

INSTRUCTION_SET(avx512vnni_set);
