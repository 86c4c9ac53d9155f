// Written by structs.py; do not edit. What a native call knows, in 8-byte fields.
#pragma once

#include <cstddef>
#include <cstdint>

namespace blockllm {

constexpr int64_t REGISTERS = 7;
enum Register : int64_t {
    TOKENS = 0,
    STREAM = 1,
    NORMED = 2,
    WIDE = 3,
    INNER = 4,
    OUTPUT = 5,
    LOGITS = 6,
};
enum OpCode : int64_t {
    LOOK_UP = 0,
    NORM = 1,
    NORM_HEADS = 2,
    LINEAR = 3,
    WRITE = 4,
    ATTEND = 5,
    KEEP = 6,
    GATE = 7,
    ADD = 8,
    GATE_RELU = 9,
};
struct Matrix {
    const void* weights;  // packed panels of a linear; rows of a table that is looked up
    int64_t code;  // of the weights' type, as of linear_run; 3: int8
    const float* scale;  // [outputs] of int8
    const int32_t* offsets;  // [outputs] of int8
    const float* bias;  // [outputs] or null
    int64_t inputs;  // of a table its rows
    int64_t outputs;  // of a table its columns
    const void* adapters;  // as lora_run takes them, or null
};
struct NativeOp {
    int64_t code;  // an OpCode
    int64_t source;  // register that is read
    int64_t target;  // register that is written
    int64_t added;  // register that the target is added to as well, or -1
    Matrix matrix;  // of a linear or table
    const float* weight;  // of a norm, [width] or [dim]
    double eps;  // of a norm
    int64_t width;  // floats from a row of the source to the next
    int64_t first;  // first head that is normed
    int64_t heads;  // heads of queries, or those that are normed
    int64_t kv_heads;  // heads of keys and of values
    int64_t dim;  // of a head
    int64_t window;  // tokens that attention sees; 0: all
    double scale;  // of attention's scores
};
struct LayerOps {
    const NativeOp* ops;  // one layer's
    int64_t count;  // how many
};
struct Program {
    const LayerOps* layers;  // in order
    int64_t count;  // of layers
    int64_t last;  // layer behind whose attention rows may be dropped; -1: none
    int64_t linears;  // of all layers
    int64_t result;  // register that the caller gets
    int64_t inputs;  // most inputs of a linear or norm
    int64_t widths[7];  // floats per row of each register
};
struct KVAccess {
    float* keys;  // of the first layer within the pages; strides are in floats
    int64_t page_size;  // tokens
    int64_t page_stride;  // from a page to the next
    int64_t layer_stride;  // from a layer within a page to the next
    int64_t value_stride;  // from keys to values
    int64_t layers_per_page;  // layers of a bundle
    const float* cos;  // [.., dim]
    const float* sin;  // [.., dim]
    const int64_t* rotations;  // [rows] which of them; null: in order of the rows
    const int64_t* write_pages;  // [bundles, rows], bundles lie write_stride apart
    int64_t write_stride;
    const int64_t* write_offsets;  // [rows]
    const int32_t* tables;  // [sequences, bundles, width]
    int64_t bundles;
    int64_t width;  // pages of a sequence
    const int32_t* tiles;  // [num_tiles, 4] runs of rows of one sequence
    int64_t num_tiles;
    const int64_t* members;  // [singles] whose the single rows are; null: one of each
    const int64_t* where;  // [singles] which rows they are
    const int64_t* contexts;  // [singles] tokens that they see
    int64_t singles;  // rows that are attended to one by one
};

// size of each struct, and offsets of its fields
#define STRUCT_LAYOUTS \
    sizeof(Matrix), \
    offsetof(Matrix, weights), \
    offsetof(Matrix, code), \
    offsetof(Matrix, scale), \
    offsetof(Matrix, offsets), \
    offsetof(Matrix, bias), \
    offsetof(Matrix, inputs), \
    offsetof(Matrix, outputs), \
    offsetof(Matrix, adapters), \
    sizeof(NativeOp), \
    offsetof(NativeOp, code), \
    offsetof(NativeOp, source), \
    offsetof(NativeOp, target), \
    offsetof(NativeOp, added), \
    offsetof(NativeOp, matrix), \
    offsetof(NativeOp, weight), \
    offsetof(NativeOp, eps), \
    offsetof(NativeOp, width), \
    offsetof(NativeOp, first), \
    offsetof(NativeOp, heads), \
    offsetof(NativeOp, kv_heads), \
    offsetof(NativeOp, dim), \
    offsetof(NativeOp, window), \
    offsetof(NativeOp, scale), \
    sizeof(LayerOps), \
    offsetof(LayerOps, ops), \
    offsetof(LayerOps, count), \
    sizeof(Program), \
    offsetof(Program, layers), \
    offsetof(Program, count), \
    offsetof(Program, last), \
    offsetof(Program, linears), \
    offsetof(Program, result), \
    offsetof(Program, inputs), \
    offsetof(Program, widths), \
    sizeof(KVAccess), \
    offsetof(KVAccess, keys), \
    offsetof(KVAccess, page_size), \
    offsetof(KVAccess, page_stride), \
    offsetof(KVAccess, layer_stride), \
    offsetof(KVAccess, value_stride), \
    offsetof(KVAccess, layers_per_page), \
    offsetof(KVAccess, cos), \
    offsetof(KVAccess, sin), \
    offsetof(KVAccess, rotations), \
    offsetof(KVAccess, write_pages), \
    offsetof(KVAccess, write_stride), \
    offsetof(KVAccess, write_offsets), \
    offsetof(KVAccess, tables), \
    offsetof(KVAccess, bundles), \
    offsetof(KVAccess, width), \
    offsetof(KVAccess, tiles), \
    offsetof(KVAccess, num_tiles), \
    offsetof(KVAccess, members), \
    offsetof(KVAccess, where), \
    offsetof(KVAccess, contexts), \
    offsetof(KVAccess, singles)

}  // namespace blockllm
