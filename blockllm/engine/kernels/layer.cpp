// A decoder layer in one call: the kernels of linears, attention and what is between them, one after
// the other. Called one by one from Python, a dozen times per layer, they left memory idle for 15 %
// of a decoding step: between two big linears the interpreter runs from cold caches. Plain twin: the
// same kernels called one by one (models/halves.py); the bits are equal.

#include "kernels.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

namespace blockllm {
namespace {

constexpr int64_t INT8 = 3;  // a matrix's code, beside those of linear_run

// In 8-byte fields; kernels/layer.py writes them.
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
    int64_t page_size, page_stride, value_stride;
    const float *cos, *sin;       // [rows, dim]
    const int64_t* write_pages;   // [bundles, rows]
    const int64_t* write_offsets;  // [rows]
    const int32_t* tables;        // [sequences, bundles, width]
    int64_t bundles, width;
    const int32_t* tiles;  // [num_tiles, 4] of sequences with several rows
    int64_t num_tiles;
    // [singles] of sequences with one row: which, the row, its context; if there are no tiles, all
    const int64_t *members, *where, *contexts;
    int64_t singles;
};

struct Call {
    const Layer& layer;
    const Rows& at;
    int64_t rows;
    float* keys;
    int64_t bundle;
    const int32_t* segments;
    int64_t num_segments;
    int threads;
    float* scratch;  // [rows, most inputs of a matrix]
};

void apply(const Call& call, const Matrix& matrix, float* y, const float* x) {
    const auto [in, out] = std::pair(matrix.in, matrix.out);
    if (matrix.code == INT8)
        int8_run(y, out, x, in, static_cast<const int8_t*>(matrix.weights), matrix.scale,
                 matrix.offsets, matrix.bias, reinterpret_cast<int32_t*>(call.scratch), call.rows,
                 in, out, call.threads);
    else
        linear_run(y, out, x, in, matrix.weights, matrix.code, matrix.bias, call.scratch, call.rows,
                   in, out, call.threads);
    if (matrix.adapters && call.num_segments)
        lora_run(y, out, x, in, call.segments, call.num_segments, matrix.adapters, call.threads);
}

void norm_rows(const Call& call, float* out, const float* x, const float* weight) {
    const int64_t size = call.layer.hidden;
    rms_norm(out, x, weight, call.rows, 1, size, size, size, static_cast<float>(call.layer.eps),
             call.threads);
}

void norm_heads(const Call& call, float* heads, int64_t count, const float* weight) {
    const Layer& layer = call.layer;
    if (weight)
        rms_norm(heads, heads, weight, call.rows, count, layer.dim, layer.qkv.out, layer.qkv.out,
                 static_cast<float>(layer.eps), call.threads);
}

void add(const Call& call, float* sum, const float* x, const float* y) {
    const int64_t count = call.rows * call.layer.hidden;
#pragma omp parallel for simd num_threads(call.threads) if (count > 16384)
    for (int64_t i = 0; i < count; ++i) sum[i] = x[i] + y[i];
}

void decode(const Call& call, float* out, const float* q, int64_t q_stride, const int32_t* tables,
            int64_t table_stride) {
    const Layer& layer = call.layer;
    const Rows& at = call.at;
    paged_decode(out, q, q_stride, call.keys, at.page_stride, at.value_stride, tables, table_stride,
                 at.contexts, at.singles, layer.heads, layer.kv_heads, layer.dim, at.page_size,
                 layer.window, static_cast<float>(layer.scale), call.threads);
}

// The rows of sequences with one row lie between runs of others.
void decode_scattered(const Call& call, float* out, const float* fused, const int32_t* tables,
                      int64_t table_stride) {
    const Rows& at = call.at;
    const int64_t size = call.layer.o.in, stride = call.layer.qkv.out;
    std::vector<float> q(at.singles * size), attended(at.singles * size);
    std::vector<int32_t> own(at.singles * at.width);
    for (int64_t i = 0; i < at.singles; ++i) {
        std::memcpy(&q[i * size], fused + at.where[i] * stride, size * sizeof(float));
        std::memcpy(&own[i * at.width], tables + at.members[i] * table_stride, at.width * 4);
    }
    decode(call, attended.data(), q.data(), size, own.data(), at.width);
    for (int64_t i = 0; i < at.singles; ++i)
        std::memcpy(out + at.where[i] * size, &attended[i * size], size * sizeof(float));
}

// fused [rows, heads + 2 kv_heads, dim], not yet rotated -> out [rows, heads, dim]
void attend(const Call& call, float* out, float* fused) {
    const Layer& layer = call.layer;
    const Rows& at = call.at;
    norm_heads(call, fused, layer.heads, layer.q_norm);
    norm_heads(call, fused + layer.heads * layer.dim, layer.kv_heads, layer.k_norm);
    rotate_and_write(fused, at.cos, at.sin, call.keys, at.page_stride, at.value_stride,
                     at.write_pages + call.bundle * call.rows, at.write_offsets, call.rows,
                     layer.heads, layer.kv_heads, layer.dim, call.threads);
    const int32_t* tables = at.tables + call.bundle * at.width;
    const int64_t table_stride = at.bundles * at.width;
    if (!at.num_tiles) return decode(call, out, fused, layer.qkv.out, tables, table_stride);
    paged_prefill(out, layer.o.in, fused, layer.qkv.out, call.keys, at.page_stride, at.value_stride,
                  tables, table_stride, at.tiles, at.num_tiles, layer.heads, layer.kv_heads,
                  layer.dim, at.page_size, layer.window, static_cast<float>(layer.scale),
                  call.threads);
    if (at.singles) decode_scattered(call, out, fused, tables, table_stride);
}

int64_t padded(int64_t floats) { return (floats + 15) / 16 * 16; }

}  // namespace
}  // namespace blockllm

using namespace blockllm;

extern "C" {

// x and out: [rows, hidden]. keys: the layer's first page; segments [num_segments, 3] as lora_run
// takes them. Keys and values of the rows land on their pages.
void layer_run(float* out, const float* x, int64_t rows, const Layer* layer, const Rows* at,
               float* keys, int64_t bundle, const int32_t* segments, int64_t num_segments,
               int threads) {
    const Matrix &qkv = layer->qkv, &o = layer->o, &gate_up = layer->gate_up, &down = layer->down;
    const int64_t hidden = padded(rows * layer->hidden);
    const int64_t wide = padded(rows * std::max(qkv.out, gate_up.out));
    const int64_t inner = padded(rows * std::max(o.in, down.in));
    const int64_t most = std::max(layer->hidden, std::max(o.in, down.in)) + 1;
    const int64_t room = 3 * hidden + wide + inner + padded(rows * most);
    std::unique_ptr<void, decltype(&std::free)> memory(std::aligned_alloc(64, room * 4), &std::free);
    float* normed = static_cast<float*>(memory.get());
    float *sum = normed + hidden, *y = sum + hidden, *fused = y + hidden, *active = fused + wide;
    const Call call{*layer, *at,      rows,         keys,    bundle,
                    segments, num_segments, threads, active + inner};
    if (qkv.weights) {
        norm_rows(call, normed, x, layer->norm);
        apply(call, qkv, fused, normed);
        attend(call, active, fused);
        apply(call, o, y, active);
        add(call, gate_up.weights ? sum : out, x, y);
        x = sum;
    }
    if (gate_up.weights) {
        norm_rows(call, normed, x, layer->mlp_norm);
        apply(call, gate_up, fused, normed);
        silu_multiply(active, fused, rows, down.in, threads);
        apply(call, down, y, active);
        add(call, out, x, y);
    }
}

}  // extern "C"
