// What a native call knows of its layers, in 8-byte fields; kernels/cpu/layer.py writes them.
#pragma once

#include <cstdint>

namespace blockllm {

constexpr int64_t INT8 = 3;  // a matrix's code, beside those of linear_run

struct Matrix {
    const void* weights;  // packed; null where the layer lacks this half
    int64_t code;
    const float* scale;      // [out] of int8
    const int32_t* offsets;  // [out] of int8
    const float* bias;       // [out] or null
    int64_t in, out;
    const void* adapters;  // as lora_run takes them, or null
};
struct Layer {
    Matrix qkv, o, gate_up, down;
    const float *norm, *q_norm, *k_norm, *mlp_norm;  // those of heads may be null
    int64_t hidden, heads, kv_heads, dim, window;
    double eps, scale;  // of the norms, of attention
};
struct Rows {
    float* keys;  // of the first layer within the pages
    int64_t page_size, page_stride, layer_stride, value_stride, layers_per_page;
    const float *cos, *sin;       // [.., dim]
    const int64_t* rotations;     // [rows] which of them, null if they are in order
    const int64_t* write_pages;   // [bundles, rows], bundles lie write_stride apart
    int64_t write_stride;
    const int64_t* write_offsets;  // [rows]
    const int32_t* tables;        // [sequences, bundles, width]
    int64_t bundles, width;
    const int32_t* tiles;  // [num_tiles, 4] of sequences with several rows
    int64_t num_tiles;
    // [singles] rows one by one: whose, which, its context; without members all rows in order
    const int64_t *members, *where, *contexts;
    int64_t singles;

    // Of one layer, by its number among those that keep any KV.
    float* keys_of(int64_t kv_layer) const { return keys + kv_layer % layers_per_page * layer_stride; }
    const int64_t* write_pages_of(int64_t kv_layer) const {
        return write_pages + kv_layer / layers_per_page * write_stride;
    }
    const int32_t* tables_of(int64_t kv_layer) const {
        return tables + kv_layer / layers_per_page * width;
    }
};

// The table that rows of token ids are looked up in; codes as of a matrix.
struct Entry {
    const void* table;  // [vocab, hidden]
    int64_t code, vocab, hidden;
};
// Final norm and projection.
struct Head {
    const float* norm;
    double eps;
    Matrix projection;
};

}  // namespace blockllm
