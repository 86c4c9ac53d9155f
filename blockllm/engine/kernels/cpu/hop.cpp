// Programs over many rows: the kernels of linears, attention and what is between them, op by op.
// Called one by one from Python, a dozen times per layer, they left memory idle for 15 % of a
// decoding step: between two big linears the interpreter runs from cold caches. Plain twin:
// layers/plain.py; the bits are equal.

#include "kernels.h"
#include "program.h"
#include "small.h"

#include <cstdlib>
#include <memory>
#include <vector>

namespace blockllm {
namespace {

// Which rows add which delta, as lora_run takes it.
struct Deltas {
    const int32_t* segments;  // [count, 3]
    int64_t count;
};

// The rows that go on behind the last attention; the others were there for their keys and values.
struct OutputRows {
    const int64_t* rows;  // [count], ascending
    int64_t count;  // negative: all go on
    Deltas deltas;  // of these rows
};

class Hop {
public:
    Hop(const KVAccess& kv, int64_t kv_layer, int64_t rows, Deltas deltas, float* scratch, int threads)
        : kv_(kv), kv_layer_(kv_layer), rows_(rows), deltas_(deltas), scratch_(scratch),
          threads_(threads) {}

    // `room`: of each register's rows; x is what TOKENS and STREAM hold before they are written.
    void run(const Program& program, float* const* room, const void* x, const OutputRows& kept) {
        std::copy_n(room, REGISTERS, room_);
        std::copy_n(room, REGISTERS, values_);
        values_[STREAM] = static_cast<const float*>(x);
        tokens_ = static_cast<const int64_t*>(x);
        hidden_ = program.widths[STREAM];
        for (int64_t i = 0; i < program.count; ++i) {
            const LayerOps& layer = program.layers[i];
            for (int64_t n = 0; n < layer.count && rows_; ++n) {
                if (layer.ops[n].code != KEEP) run(layer.ops[n]);
                else if (i == program.last && kept.count >= 0) keep(layer.ops[n], kept);
            }
        }
    }

private:
    void run(const NativeOp& op) {
        switch (op.code) {
            case LOOK_UP: return look_up_rows(op);
            case NORM: return norm(op);
            case NORM_HEADS: return norm_heads(op);
            case LINEAR: return linear(op);
            case WRITE: return write(op);
            case ATTEND: return attend(op);
            case GATE: return gate(op);
            case GATE_RELU: return gate_relu(op);
            case ADD: return add(op.target, op.source);
        }
    }

    float* write_to(int64_t target) {
        values_[target] = room_[target];
        return room_[target];
    }

    void look_up_rows(const NativeOp& op) {
        float* out = write_to(op.target);
        const Matrix& table = op.matrix;
        for (int64_t r = 0; r < rows_; ++r, out += table.outputs)
            look_up(out, tokens_[r], table, 0, table.outputs);
    }

    void norm(const NativeOp& op) {
        const float* x = values_[op.source];
        rms_norm(write_to(op.target), x, op.weight, rows_, 1, op.width, op.width, op.width,
                 static_cast<float>(op.eps), threads_);
    }

    void norm_heads(const NativeOp& op) {
        float* heads = room_[op.target] + op.first * op.dim;
        rms_norm(heads, heads, op.weight, rows_, op.heads, op.dim, op.width, op.width,
                 static_cast<float>(op.eps), threads_);
    }

    void linear(const NativeOp& op) {
        const Matrix& matrix = op.matrix;
        const int64_t in = matrix.inputs, out = matrix.outputs;
        const float* x = values_[op.source];
        float* y = write_to(op.target);
        if (matrix.code == INT8)
            int8_run(y, out, x, in, static_cast<const int8_t*>(matrix.weights), matrix.scale,
                     matrix.offsets, matrix.bias, reinterpret_cast<int32_t*>(scratch_), rows_, in,
                     out, threads_);
        else
            linear_run(y, out, x, in, matrix.weights, matrix.code, matrix.bias, scratch_, rows_, in,
                       out, threads_);
        if (matrix.adapters && deltas_.count)
            lora_run(y, out, x, in, deltas_.segments, deltas_.count, matrix.adapters, threads_);
        if (op.added >= 0) add(op.added, op.target);
    }

    // target += source, both as wide as the stream
    void add(int64_t target, int64_t source) {
        const float *x = values_[target], *y = values_[source];
        float* sum = write_to(target);
        const int64_t count = rows_ * hidden_;
#pragma omp parallel for simd num_threads(threads_) if (count > 16384)
        for (int64_t i = 0; i < count; ++i) sum[i] = x[i] + y[i];
    }

    void gate(const NativeOp& op) {
        const float* x = values_[op.source];
        silu_multiply(write_to(op.target), x, rows_, op.width / 2, threads_);
    }

    void gate_relu(const NativeOp& op) {
        const float* x = values_[op.source];
        float* out = write_to(op.target);
        const int64_t size = op.width / 2;
#pragma omp parallel for num_threads(threads_) if (rows_ * size > 16384)
        for (int64_t r = 0; r < rows_; ++r)
            relu_vector(out + r * size, x + r * op.width, x + r * op.width + size, size);
    }

    void write(const NativeOp& op) {
        rotate_and_write(room_[op.target], kv_.cos, kv_.sin, kv_.rotations, keys_of(kv_, kv_layer_),
                         kv_.page_stride, kv_.value_stride, write_pages_of(kv_, kv_layer_),
                         kv_.write_offsets, rows_, op.heads, op.kv_heads, op.dim, kv_.page_size,
                         threads_);
    }

    // source [rows, heads + 2 kv_heads, dim], rotated -> target [rows, heads, dim]
    void attend(const NativeOp& op) {
        const float* q = values_[op.source];
        float* out = write_to(op.target);
        const int32_t* tables = tables_of(kv_, kv_layer_);
        const int64_t stride = kv_.bundles * kv_.width;
        if (!kv_.members && kv_.singles == rows_) {
            decode(op, out, q, op.width, tables, stride);
        } else {
            paged_prefill(out, op.heads * op.dim, q, op.width, keys_of(kv_, kv_layer_),
                          kv_.page_stride, kv_.value_stride, tables, stride, kv_.tiles,
                          kv_.num_tiles, op.heads, op.kv_heads, op.dim, kv_.page_size, op.window,
                          static_cast<float>(op.scale), threads_);
            if (kv_.singles) decode_scattered(op, out, q, tables, stride);
        }
        ++kv_layer_;
    }

    void decode(const NativeOp& op, float* out, const float* q, int64_t q_stride, const int32_t* tables,
                int64_t table_stride) {
        paged_decode(out, q, q_stride, keys_of(kv_, kv_layer_), kv_.page_stride, kv_.value_stride,
                     tables, table_stride, kv_.contexts, kv_.singles, op.heads, op.kv_heads, op.dim,
                     kv_.page_size, op.window, static_cast<float>(op.scale), threads_);
    }

    // The rows of sequences with one row lie between runs of others.
    void decode_scattered(const NativeOp& op, float* out, const float* wide, const int32_t* tables,
                          int64_t table_stride) {
        const int64_t size = op.heads * op.dim;
        std::vector<float> q(kv_.singles * size), attended(kv_.singles * size);
        std::vector<int32_t> own(kv_.singles * kv_.width);
        for (int64_t i = 0; i < kv_.singles; ++i) {
            std::memcpy(&q[i * size], wide + kv_.where[i] * op.width, size * sizeof(float));
            std::memcpy(&own[i * kv_.width], tables + kv_.members[i] * table_stride, kv_.width * 4);
        }
        decode(op, attended.data(), q.data(), size, own.data(), kv_.width);
        for (int64_t i = 0; i < kv_.singles; ++i)
            std::memcpy(out + kv_.where[i] * size, &attended[i * size], size * sizeof(float));
    }

    // Moves the rows that go on to the front, of the source and of the stream.
    void keep(const NativeOp& op, const OutputRows& kept) {
        gather(op.source, op.width, kept);
        gather(STREAM, hidden_, kept);
        rows_ = kept.count;
        deltas_ = kept.deltas;
    }

    void gather(int64_t source, int64_t width, const OutputRows& kept) {
        const float* from = values_[source];
        float* to = write_to(source);  // no row moves backwards
        for (int64_t i = 0; i < kept.count; ++i)
            std::memmove(to + i * width, from + kept.rows[i] * width, width * sizeof(float));
    }

    const KVAccess& kv_;
    int64_t kv_layer_;  // the next attention's number among those of the rows' chains
    int64_t rows_;
    Deltas deltas_;
    float* scratch_;  // [rows, most inputs of a linear]
    int threads_;
    int64_t hidden_ = 0;
    const int64_t* tokens_ = nullptr;
    float* room_[REGISTERS];
    const float* values_[REGISTERS];  // where each register's rows are
};

}  // namespace
}  // namespace blockllm

using namespace blockllm;

extern "C" {

extern const int64_t struct_layouts[];
const int64_t struct_layouts[] = {STRUCT_LAYOUTS};

// x: token ids [rows] if the program begins with a table, else [rows, hidden]; out: the rows of the
// program's result; kv_layer is the first layer's; segments [num_segments, 3] as lora_run takes them.
// Keys and values of the rows land on their pages. If num_kept is not negative, only the kept rows go
// on behind the last attention and are part of the result; there is room for all rows of the stream.
void program_run(float* out, const void* x, int64_t rows, const Program* program, const KVAccess* kv,
                 int64_t kv_layer, const int32_t* segments, int64_t num_segments,
                 const int64_t* kept, int64_t num_kept, const int32_t* kept_segments,
                 int64_t num_kept_segments, int threads) {
    const auto room = [&](int64_t floats) { return (rows * floats + 15) / 16 * 16; };
    const int64_t scratch = room(program->inputs + 1);
    int64_t size = scratch;
    for (int64_t r = 0; r < REGISTERS; ++r)
        if (r != program->result) size += room(program->widths[r]);
    const std::unique_ptr<void, decltype(&std::free)> memory(std::aligned_alloc(64, size * 4),
                                                             &std::free);
    float *begin = static_cast<float*>(memory.get()), *next = begin + scratch;
    float* registers[REGISTERS];
    for (int64_t r = 0; r < REGISTERS; ++r) {
        registers[r] = r == program->result ? out : next;
        if (r != program->result) next += room(program->widths[r]);
    }
    if (rows == 1 && num_kept < 0 && !num_segments && !kv->num_tiles)
        return row_run({*program, *kv, kv_layer, x, registers}, threads);
    Hop hop(*kv, kv_layer, rows, {segments, num_segments}, begin, threads);
    hop.run(*program, registers, x, {kept, num_kept, {kept_segments, num_kept_segments}});
}

}  // extern "C"
