// Layers for a hop of one row, see row.cpp.
#pragma once

#include "layers.h"

namespace blockllm {

struct RowCall {
    const Rows& at;  // of one sequence
    const Layer* const* layers;
    int64_t count;  // at least 1
    const Head* head;  // or null
    int64_t kv_layer, widest;  // the first layer's; the most inputs of a matrix
    // [hidden], read and written; [hidden] twice, [most outputs], [most inputs]; [vocab] with a head
    float *states, *sum, *y, *fused, *active, *logits;
};

// Without deltas. Keys and values land on their pages.
void row_run(const RowCall& call, int threads);

}  // namespace blockllm
