// How weights lie in memory: GGUF's blocks with the rows of sixteen outputs interleaved.
//
// A tile is sixteen rows of a matrix. It holds first the scales of all of its blocks, then their quants, and in both the same
// piece of all sixteen rows stands side by side. One vector of sixteen 32-bit lanes then holds four weights of each row, and
// one lane of a sum is one output: no sum runs across lanes. Nothing is added and nothing is lost: the bytes of the file
// stand in another order (Q8_0 alone has the sign bit of its weights flipped, so that they are unsigned).
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { TILE_ROWS = 16, GROUP = 32, PANEL_ROWS = 16 };

// Numbers of the types in ggml.h.
enum { TYPE_Q4_0 = 2, TYPE_Q4_1 = 3, TYPE_Q8_0 = 8, TYPE_Q4_K = 12, TYPE_Q6_K = 14 };

// `count` pieces of `unit` bytes at `offset` of a block.
struct Field {
    int offset, unit, count;
};

struct BlockType {
    int number, weights, bytes;
    int head_bytes;   // of scales, for one row
    int head_fields;  // how many of `fields` are scales
    int fields_count;
    Field fields[4];
    int halves[2];  // offsets of float16 numbers that must be finite; -1: none
};

static const BlockType BLOCK_TYPES[] = {
    {TYPE_Q4_0, 32, 18, 2, 1, 2, {{0, 2, 1}, {2, 4, 4}}, {0, -1}},
    {TYPE_Q4_1, 32, 20, 4, 2, 3, {{0, 2, 1}, {2, 2, 1}, {4, 4, 4}}, {0, 2}},
    {TYPE_Q8_0, 32, 34, 2, 1, 2, {{0, 2, 1}, {2, 4, 8}}, {0, -1}},
    {TYPE_Q4_K, 256, 144, 16, 3, 4, {{0, 2, 1}, {2, 2, 1}, {4, 1, 12}, {16, 4, 32}}, {0, 2}},
    {TYPE_Q6_K, 256, 210, 18, 2, 4, {{208, 2, 1}, {192, 1, 16}, {0, 4, 32}, {128, 4, 16}}, {208, -1}},
};

static inline const BlockType* block_type(int64_t number) {
    for (const BlockType& type : BLOCK_TYPES)
        if (type.number == number) return &type;
    return nullptr;
}

static inline int64_t tile_count(int64_t rows) { return (rows + TILE_ROWS - 1) / TILE_ROWS; }

static inline int64_t tile_bytes(const BlockType* type, int64_t columns) {
    return columns / type->weights * type->bytes * TILE_ROWS;
}

// One matrix in this layout. Rows that only fill the last tile are zero.
struct Matrix {
    const BlockType* type;
    int64_t rows, columns;
    const uint8_t* tiles;
    const float* bias;  // of `rows` numbers, or null
};

struct Norm {
    const float *weight, *bias;  // bias: null for RMS norms
    float epsilon;
};

struct Layer {
    Norm attention_norm, feed_norm;
    Matrix project[3];  // queries, keys and values: as one matrix, or one each; the others have no rows
    Matrix output, gate, up, down;  // gate: of no rows where the feed-forward is dense
};

enum { NORM_RMS = 0, NORM_LAYER = 1 };
enum { FEED_DENSE = 0, FEED_GATED = 1 };
enum { ACT_SILU = 0, ACT_GELU = 1, ACT_GELU_TANH = 2, ACT_RELU = 3, ACT_SQUARED_RELU = 4 };

struct Model {
    int64_t layers, width, heads, kv_heads, head_width, hidden, vocabulary;
    int norm_kind, feed_kind, activation;
    float scale, logit_scale;
    Matrix embedding, head;
    Norm norm;
    const Layer* layer;
    const float *cosine, *sine;     // [positions, head_width], or null
    const float* position_table;    // [positions, width], or null
};

// What one call reads and writes. Slots are those of zoo's Cache: [layers, 2, batch, kv_heads, capacity, head_width].
struct Reading {
    int64_t batch, count, chosen, start, capacity;
    const int64_t *tokens, *positions;  // [batch, count]
    const int64_t* at;                  // [batch, chosen]; null: every token, chosen == count
    const uint8_t* valid;               // [batch, start + count], rows `valid_stride` apart; null: every slot is real
    int64_t valid_stride;
    float* store;
    int64_t stride_layer, stride_pair, stride_batch, stride_head;  // in floats
    float* logits;                                                 // [batch, chosen, vocabulary]
};
