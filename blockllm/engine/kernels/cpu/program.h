// Programs of ops, and what their two interpreters have in common: hop.cpp runs one op after the other
// over all rows, row.cpp all of them for one row with threads that stay together.
#pragma once

#include "codes.h"
#include "structs.h"

#include <algorithm>
#include <cstring>
#include <limits>

namespace blockllm {

constexpr int64_t INT8 = 3;  // a matrix's code, beside those of linear_run

// Of one layer, by its number among those that keep any KV.
inline float* keys_of(const KVAccess& kv, int64_t layer) {
    return kv.keys + layer % kv.layers_per_page * kv.layer_stride;
}
inline const int64_t* write_pages_of(const KVAccess& kv, int64_t layer) {
    return kv.write_pages + layer / kv.layers_per_page * kv.write_stride;
}
inline const int32_t* tables_of(const KVAccess& kv, int64_t layer) {
    return kv.tables + layer / kv.layers_per_page * kv.width;
}

// out [outputs]: columns from..to of a token's row of the table in fp32; NaN if it is not in it
inline void look_up(float* out, int64_t token, const Matrix& table, int64_t from, int64_t to) {
    if (token < 0 || token >= table.inputs) {
        std::fill(out + from, out + to, std::numeric_limits<float>::quiet_NaN());
    } else if (table.code == 0) {
        const float* row = static_cast<const float*>(table.weights) + token * table.outputs;
        std::memcpy(out + from, row + from, (to - from) * 4);
    } else {
        const auto* row = static_cast<const uint16_t*>(table.weights) + token * table.outputs;
        for (int64_t i = from; i < to; i += LANES) {
            const int64_t count = std::min<int64_t>(LANES, to - i);
            words word{};
            for (int64_t lane = 0; lane < count; ++lane) word[lane] = row[i + lane];
            const floats wide = table.code == 1 ? Bfloats::expand(word, 0) : Halves::expand(word, 0);
            std::memcpy(out + i, &wide, count * 4);
        }
    }
}

struct RowCall {
    const Program& program;
    const KVAccess& kv;  // of one sequence
    int64_t kv_layer;  // the first layer's number among those that keep any KV
    const void* x;  // token [1] or hidden state [hidden]
    float* const* registers;  // room for each register's row; those of NORMED are the threads' own
};

// A program for one row, without deltas. Keys and values land on their pages.
void row_run(const RowCall& call, int threads);

}  // namespace blockllm
