// Weights of 16 bits in panels, two neighbouring inputs of one output to a word, the first in the
// low half. They become fp32 in registers, exactly, where they are multiplied.
#pragma once

#include "vectors.h"

namespace blockllm {

struct Bfloats {
    static constexpr int INPUTS = 2;
    static floats expand(words word, int input) {
        return (floats)(input ? word & 0xffff0000u : word << 16);
    }
};

struct Halves {
    static constexpr int INPUTS = 2;
    static floats expand(words word, int input) {
        word = input ? word >> 16 : word & 0xffffu;
#if defined(__AVX512F__)
        return (floats)_mm512_cvtph_ps(_mm512_cvtepi32_epi16((__m512i)word));
#elif defined(__AVX2__) && defined(__F16C__)
        const __m256i lanes = (__m256i)word;
        return (floats)_mm256_cvtph_ps(
            _mm_packus_epi32(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256(lanes, 1)));
#else
        // exponents are moved by a product, which also brings what is below the least normal half
        const words magnitude = (word & 0x7fffu) << 13, sign = (word & 0x8000u) << 16;
        const words scaled = (words)((floats)magnitude * 0x1p112f);
        const words endless = magnitude | 0x7f800000u;  // infinity and NaN
        return (floats)((magnitude >= 0x0f800000u ? endless : scaled) | sign);
#endif
    }
};

}  // namespace blockllm
