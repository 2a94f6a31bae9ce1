// For every processor: plain C++, which the compiler turns into what the oldest of them have.
#include "instruction_sets.h"

#define LANES 4
#include "vectors.h"
#include "products.h"

namespace {
inline TileProduct product_for(int) { return each_panel<plain_product>; }
}  // namespace

#include "attention.h"
#include "pass.h"

INSTRUCTION_SET(portable_set);
