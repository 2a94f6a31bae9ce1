// What each instruction set offers: the same functions, compiled once for each.
#pragma once

#include "layout.h"
#include "threads.h"

struct InstructionSet {
    void (*sizes_of_pass)(const Model&, const Reading&, size_t* shared, size_t* own);
    void (*pass)(const Model&, const Reading&, const Worker&, uint8_t* shared, uint8_t* own);
    void (*linear)(const Matrix&, const float* from, int64_t rows, float* to, const Worker&, uint8_t* memory);
    void (*read_rows)(const Matrix& table, const int64_t* rows, int64_t count, float* to);
};

extern const InstructionSet portable_set, avx2_set, avx512vnni_set, amx_set;
