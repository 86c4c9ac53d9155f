// The exponential function as the CPU kernels use it.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace blockllm {

// exp for arguments <= 0, vectorisable; relative error below 2e-7 (Cephes' expf polynomial)
inline float exp_negative(float argument) {
    const float x = argument < -87.0f ? -87.0f : argument;  // a NaN stays one
    const float n = std::nearbyintf(x * 1.44269504f);
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
    float scale;
    std::memcpy(&scale, &bits, sizeof scale);
    return argument < -87.0f ? 0.0f : p * scale;
}

}  // namespace blockllm
