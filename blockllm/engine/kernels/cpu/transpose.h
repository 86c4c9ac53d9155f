// A square of words, turned in registers.
#pragma once

#include "vectors.h"

#include <utility>

namespace blockllm {

// The lanes of b that lack the bit STEP trade places with those of a that have it.
template <int STEP, unsigned... LANE>
inline void exchange(words& a, words& b, std::integer_sequence<unsigned, LANE...>) {
    const words left = a, right = b;
    a = BLOCKLLM_SHUFFLE(left, right, (LANE & STEP ? LANES + LANE - STEP : LANE)...);
    b = BLOCKLLM_SHUFFLE(left, right, (LANE & STEP ? LANES + LANE : LANE + STEP)...);
}

template <int STEP = LANES / 2>
inline void transpose(words (&square)[LANES]) {
    for (int r = 0; r < LANES; ++r)
        if (!(r & STEP))
            exchange<STEP>(square[r], square[r + STEP],
                           std::make_integer_sequence<unsigned, LANES>());
    if constexpr (STEP > 1) transpose<STEP / 2>(square);
}

}  // namespace blockllm
