// Layers in one call: the kernels of linears, attention and what is between them, one after the
// other; the embedding before decoder layers and the head behind them, where these are there. Called
// one by one from Python, a dozen times per layer, they left memory idle for 15 % of a decoding step:
// between two big linears the interpreter runs from cold caches. Plain twin: the same kernels called
// one by one (layers/halves.py); the bits are equal.

#include "codes.h"
#include "kernels.h"
#include "layers.h"
#include "row.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

namespace blockllm {
namespace {

// The rows that go on behind the last attention; the others were there for their keys and values.
struct Kept {
    const int64_t* rows;  // [count], ascending
    int64_t count;  // negative: all go on
    const int32_t* segments;  // of these rows, as the call's
    int64_t num_segments;
};

// One layer's turn in a call.
struct Call {
    const Rows& at;
    int64_t rows;
    const int32_t* segments;
    int64_t num_segments;
    int threads;
    // [rows, most inputs of a matrix], [rows, hidden] three times, [rows, most outputs] twice
    float *scratch, *normed, *sum, *y, *fused, *active;
    const Layer* layer;
    int64_t kv_layer;  // its number among those that keep any KV
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

void norm_rows(const Call& call, float* out, const float* x, const float* weight, double eps) {
    const int64_t size = call.layer->hidden;
    rms_norm(out, x, weight, call.rows, 1, size, size, size, static_cast<float>(eps), call.threads);
}

void norm_heads(const Call& call, float* heads, int64_t count, const float* weight) {
    const Layer& layer = *call.layer;
    if (weight)
        rms_norm(heads, heads, weight, call.rows, count, layer.dim, layer.qkv.out, layer.qkv.out,
                 static_cast<float>(layer.eps), call.threads);
}

void add(const Call& call, float* sum, const float* x, const float* y) {
    const int64_t count = call.rows * call.layer->hidden;
#pragma omp parallel for simd num_threads(call.threads) if (count > 16384)
    for (int64_t i = 0; i < count; ++i) sum[i] = x[i] + y[i];
}

void decode(const Call& call, float* out, const float* q, int64_t q_stride, const int32_t* tables,
            int64_t table_stride) {
    const Layer& layer = *call.layer;
    const Rows& at = call.at;
    paged_decode(out, q, q_stride, at.keys_of(call.kv_layer), at.page_stride, at.value_stride, tables,
                 table_stride, at.contexts, at.singles, layer.heads, layer.kv_heads, layer.dim,
                 at.page_size, layer.window, static_cast<float>(layer.scale), call.threads);
}

// The rows of sequences with one row lie between runs of others.
void decode_scattered(const Call& call, float* out, const float* fused, const int32_t* tables,
                      int64_t table_stride) {
    const Rows& at = call.at;
    const int64_t size = call.layer->o.in, stride = call.layer->qkv.out;
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
    const Layer& layer = *call.layer;
    const Rows& at = call.at;
    norm_heads(call, fused, layer.heads, layer.q_norm);
    norm_heads(call, fused + layer.heads * layer.dim, layer.kv_heads, layer.k_norm);
    float* keys = at.keys_of(call.kv_layer);
    rotate_and_write(fused, at.cos, at.sin, at.rotations, keys, at.page_stride, at.value_stride,
                     at.write_pages_of(call.kv_layer), at.write_offsets, call.rows, layer.heads,
                     layer.kv_heads, layer.dim, at.page_size, call.threads);
    const int32_t* tables = at.tables_of(call.kv_layer);
    const int64_t table_stride = at.bundles * at.width;
    if (!at.members && at.singles == call.rows)
        return decode(call, out, fused, layer.qkv.out, tables, table_stride);
    paged_prefill(out, layer.o.in, fused, layer.qkv.out, keys, at.page_stride, at.value_stride,
                  tables, table_stride, at.tiles, at.num_tiles, layer.heads,
                  layer.kv_heads, layer.dim, at.page_size, layer.window,
                  static_cast<float>(layer.scale), call.threads);
    if (at.singles) decode_scattered(call, out, fused, tables, table_stride);
}

// Moves the rows that go on to the front, and what they add to: that is returned.
const float* keep(Call& call, const Kept& kept, const float* x) {
    const int64_t size = call.layer->o.in, hidden = call.layer->hidden;
    for (int64_t i = 0; i < kept.count; ++i) {
        std::memmove(call.active + i * size, call.active + kept.rows[i] * size, size * 4);
        std::memcpy(call.sum + i * hidden, x + kept.rows[i] * hidden, hidden * 4);
    }
    call.rows = kept.count;
    call.segments = kept.segments;
    call.num_segments = kept.num_segments;
    return call.sum;
}

void run(Call& call, float* out, const float* x, const Kept& kept) {
    const Layer& layer = *call.layer;
    if (layer.qkv.weights) {
        norm_rows(call, call.normed, x, layer.norm, layer.eps);
        apply(call, layer.qkv, call.fused, call.normed);
        attend(call, call.active, call.fused);
        if (kept.count >= 0) x = keep(call, kept, x);
        if (!call.rows) return;
        apply(call, layer.o, call.y, call.active);
        add(call, layer.gate_up.weights ? call.sum : out, x, call.y);
        x = call.sum;
    }
    if (layer.gate_up.weights) {
        norm_rows(call, call.normed, x, layer.mlp_norm, layer.eps);
        apply(call, layer.gate_up, call.fused, call.normed);
        silu_multiply(call.active, call.fused, call.rows, layer.down.in, call.threads);
        apply(call, layer.down, call.y, call.active);
        add(call, out, x, call.y);
    }
}

// out [rows, hidden]: each token's row of the table in fp32; NaN for a token that is not in it
void look_up(float* out, const int64_t* tokens, int64_t rows, const Entry& entry) {
    const int64_t hidden = entry.hidden;
    for (int64_t r = 0; r < rows; ++r, out += hidden) {
        const int64_t token = tokens[r];
        if (token < 0 || token >= entry.vocab) {
            std::fill_n(out, hidden, std::numeric_limits<float>::quiet_NaN());
        } else if (entry.code == 0) {
            std::memcpy(out, static_cast<const float*>(entry.table) + token * hidden, hidden * 4);
        } else {
            const auto* from = static_cast<const uint16_t*>(entry.table) + token * hidden;
            for (int64_t i = 0; i < hidden; i += LANES) {
                const int64_t count = std::min<int64_t>(LANES, hidden - i);
                words word{};
                for (int64_t lane = 0; lane < count; ++lane) word[lane] = from[i + lane];
                const floats wide =
                    entry.code == 1 ? Bfloats::expand(word, 0) : Halves::expand(word, 0);
                std::memcpy(out + i, &wide, count * 4);
            }
        }
    }
}

// What a layer's intermediate results need: floats per row.
struct Sizes {
    int64_t hidden = 0, wide = 0, inner = 0;
    void include(const Layer& layer) {
        hidden = std::max(hidden, layer.hidden);
        wide = std::max({wide, layer.qkv.out, layer.gate_up.out});
        inner = std::max({inner, layer.o.in, layer.down.in});
    }
};

}  // namespace
}  // namespace blockllm

using namespace blockllm;

extern "C" {

// x: [rows, hidden], or tokens [rows] if there is an entry; out: [rows, hidden], or [rows, vocab] if
// there is a head; kv_layer is the first layer's; segments [num_segments, 3] as lora_run takes them.
// Keys and values of the rows land on their pages. If num_kept is not negative, only the kept rows go
// on behind the last attention, and out has num_kept rows.
void layers_run(float* out, const void* x, int64_t rows, const Layer* const* layers, int64_t count,
                const Entry* entry, const Head* head, const Rows* at, int64_t kv_layer,
                const int32_t* segments, int64_t num_segments,
                const int64_t* kept, int64_t num_kept, const int32_t* kept_segments,
                int64_t num_kept_segments, int threads) {
    Sizes sizes;
    for (int64_t i = 0; i < count; ++i) sizes.include(*layers[i]);
    const auto room = [&](int64_t floats) { return (rows * floats + 15) / 16 * 16; };
    const int64_t hidden = room(sizes.hidden), wide = room(sizes.wide), inner = room(sizes.inner);
    const int64_t scratch = room(std::max(sizes.hidden, sizes.inner) + 1);
    const int64_t own = head ? hidden : 0;  // hidden states that are not an output
    const std::unique_ptr<void, decltype(&std::free)> memory(
        std::aligned_alloc(64, (scratch + 3 * hidden + wide + inner + own) * 4), &std::free);
    float* begin = static_cast<float*>(memory.get());
    float *normed = begin + scratch, *fused = normed + 3 * hidden;
    Call call{*at,    rows,   segments,        num_segments,        threads, begin,
              normed, normed + hidden, normed + 2 * hidden, fused, fused + wide, nullptr, kv_layer};
    int64_t last = count - 1;
    while (last > 0 && !layers[last]->qkv.weights) --last;
    float* states = head ? call.active + inner : out;
    if (entry) look_up(states, static_cast<const int64_t*>(x), rows, *entry);
    const float* from = entry ? states : static_cast<const float*>(x);
    if (rows == 1 && num_kept < 0 && !num_segments && !at->num_tiles) {
        if (from != states) std::copy_n(from, layers[0]->hidden, states);
        return row_run({*at, layers, count, head, kv_layer, std::max(sizes.hidden, sizes.inner),
                        states, call.sum, call.y, fused, call.active, out}, threads);
    }
    const Kept all{nullptr, -1, nullptr, 0}, some{kept, num_kept, kept_segments, num_kept_segments};
    for (int64_t i = 0; i < count && call.rows; ++i, from = states) {
        call.layer = layers[i];
        run(call, states, from, i == last ? some : all);
        call.kv_layer += call.layer->qkv.weights != nullptr;
    }
    if (head && call.rows) {
        norm_rows(call, call.normed, states, head->norm, head->eps);
        apply(call, head->projection, out, call.normed);
    }
}

}  // extern "C"
