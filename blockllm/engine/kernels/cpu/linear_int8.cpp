// y = x W^T + b with int8 weights: W ~ packed * scale per output, packed once into panels of
// outputs, [panels, in / 4, PANEL, 4].
//
// Every row of x is rounded to 7 bits by its own largest value, so its bits do not depend on the
// rows beside it, and pairs of products fit the 16-bit sums of machines without VNNI. Sums are exact
// integers: the plain twin (kernels/plain.py) agrees up to the last rounding.

#include "kernels.h"
#include "vectors.h"

#include <cmath>
#include <vector>

namespace blockllm {
namespace {

constexpr int64_t DEPTH = 1024;  // inputs per block: its weights stay in cache for all tiles
constexpr int64_t AHEAD = 4096;  // bytes that a lone tile asks for ahead of its reads
constexpr float STEPS = 63.0f;   // of the rounding, to either side of ROUND_ZERO

typedef int32_t ints __attribute__((vector_size(LANES * 4)));

inline ints load_ints(const void* from) {
    ints value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

// sums[i] += four products of unsigned x and signed w[4i .. 4i + 3]
inline ints dot4(ints sums, int32_t x, ints w) {
#if defined(__AVX512VNNI__)
    return (ints)_mm512_dpbusd_epi32((__m512i)sums, _mm512_set1_epi32(x), (__m512i)w);
#elif defined(__AVX512BW__)
    const __m512i pairs = _mm512_maddubs_epi16(_mm512_set1_epi32(x), (__m512i)w);
    return sums + (ints)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
#elif defined(__AVX2__) && !defined(__AVX512F__)
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi32(x), (__m256i)w);
    return sums + (ints)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#else
    for (int byte = 0; byte < 4; ++byte)
        sums += ((x >> (8 * byte)) & 255) * ((w << (24 - 8 * byte)) >> 24);
    return sums;
#endif
}

// One row -> 7-bit codes around ROUND_ZERO, four neighbours to an int, `height` rows interleaved;
// returns what a step is worth. A value that is not finite makes the step so, and with it the whole
// row.
float round_row(int32_t* to, const float* x, int64_t height, int64_t in) {
    uint32_t largest = 0;  // bits of |x| order like the numbers, NaN above all
#pragma omp simd reduction(max : largest)
    for (int64_t k = 0; k < in; ++k) {
        uint32_t bits;
        std::memcpy(&bits, x + k, 4);
        bits &= 0x7fffffffu;
        largest = bits > largest ? bits : largest;
    }
    float most;
    std::memcpy(&most, &largest, 4);
    const float factor = most > 0 ? STEPS / most : 0.0f;
    uint8_t codes[4 * 64];
    for (int64_t block = 0; block < in; block += sizeof codes) {
        const int64_t count = in - block < (int64_t)sizeof codes ? in - block : sizeof codes;
#pragma omp simd
        for (int64_t i = 0; i < count; ++i)
            codes[i] = static_cast<uint8_t>(
                static_cast<int32_t>(std::nearbyintf(x[block + i] * factor)) + ROUND_ZERO);
        for (int64_t i = count; i % 4; ++i) codes[i] = 0;
        for (int64_t i = 0; i < count; i += 4)
            std::memcpy(to + (block + i) / 4 * height, codes + i, 4);
    }
    return most / STEPS;
}

struct Job {
    float* y;
    int64_t y_stride;
    const int32_t* x;    // packed tiles
    const float* steps;  // [rows]
    const int8_t* weights;
    const float* scale;      // [out]
    const int32_t* offsets;  // [out] ROUND_ZERO times the sum of an output's weights
    const float* bias;
    int32_t* sums;  // [rows, PANEL] of one thread, for the blocks between the first and the last
    int64_t in4, out;
    Tiles tiles;
};

template <int HEIGHT>
void finish_tile(const Job& job, int64_t tile, int64_t panel, const int32_t* sums) {
    const int64_t column = panel * PANEL, first = job.tiles.start(tile);
    const int64_t width = job.out - column < PANEL ? job.out - column : PANEL;
    for (int r = 0; r < HEIGHT; ++r) {
        float* y = job.y + (first + r) * job.y_stride + column;
        const float step = job.steps[first + r];
#pragma omp simd
        for (int64_t c = 0; c < width; ++c) {
            const int32_t sum = sums[r * PANEL + c] - job.offsets[column + c];
            const float value = static_cast<float>(sum) * step * job.scale[column + c];
            y[c] = value + (job.bias ? job.bias[column + c] : 0.0f);
        }
    }
}

template <int HEIGHT>
void run_tile(const Job& job, int64_t tile, int64_t panel, int64_t from, int64_t to) {
    constexpr int64_t WIDTH = PANEL * 4;  // bytes of four inputs
    const int8_t* weights = job.weights + (panel * job.in4 + from) * WIDTH;
    const int32_t* x = job.x + job.tiles.start(tile) * job.in4 + from * HEIGHT;
    const int64_t passes = job.tiles.count, block = (to - from) * WIDTH;
    const int8_t* ahead = weights + (passes == 1 ? AHEAD : block + tile * block / passes);
    const int64_t ahead_step = WIDTH / passes;
    int32_t* kept = job.sums + job.tiles.start(tile) * PANEL;
    ints sums[HEIGHT][VECTORS];
    for (int r = 0; r < HEIGHT; ++r)
        for (int v = 0; v < VECTORS; ++v)
            sums[r][v] = from ? load_ints(kept + r * PANEL + v * LANES) : ints{};
    for (int64_t k = 0; k < to - from; ++k) {
        ints w[VECTORS];
        for (int v = 0; v < VECTORS; ++v) w[v] = load_ints(weights + k * WIDTH + v * LANES * 4);
        __builtin_prefetch(ahead);
        __builtin_prefetch(ahead + 64);
        ahead += ahead_step;
        for (int r = 0; r < HEIGHT; ++r)
            for (int v = 0; v < VECTORS; ++v) sums[r][v] = dot4(sums[r][v], x[k * HEIGHT + r], w[v]);
    }
    std::memcpy(kept, sums, sizeof sums);
    if (to == job.in4) finish_tile<HEIGHT>(job, tile, panel, kept);
}

void run_panel(const Job& job, int64_t panel) {
    const int64_t depth = job.tiles.count > 1 ? DEPTH / 4 : job.in4;
    for (int64_t from = 0; from < job.in4; from += depth) {
        const int64_t to = from + depth < job.in4 ? from + depth : job.in4;
        for (int64_t tile = 0; tile < job.tiles.count; ++tile)
            with_height(job.tiles.size(tile), [&]<int HEIGHT>() {
                run_tile<HEIGHT>(job, tile, panel, from, to);
            });
    }
}

}  // namespace
}  // namespace blockllm

using namespace blockllm;

extern "C" {

// y [rows, out] = x [rows, in] W^T + bias; scratch holds rows * (ceil(in / 4) + 1) ints
void int8_run(float* y, int64_t y_stride, const float* x, int64_t x_stride, const int8_t* packed,
              const float* scale, const int32_t* offsets, const float* bias, int32_t* scratch,
              int64_t rows, int64_t in, int64_t out, int threads) {
    const Tiles tiles(rows);
    const int64_t in4 = divide_up(in, 4), panels = divide_up(out, PANEL);
    float* steps = reinterpret_cast<float*>(scratch + rows * in4);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; ++row) {
            const int64_t tile = row / tiles.height;
            int32_t* to = scratch + tiles.start(tile) * in4 + (row - tiles.start(tile));
            steps[row] = round_row(to, x + row * x_stride, tiles.size(tile), in);
        }
        std::vector<int32_t> sums(rows * PANEL);
        const Job job{y,       y_stride, scratch, steps,       packed, scale,
                      offsets, bias,     sums.data(), in4, out,    tiles};
#pragma omp for schedule(guided)
        for (int64_t panel = 0; panel < panels; ++panel) run_panel(job, panel);
    }
}

// x [in] -> codes [ceil(in / 4)] for int8_row; returns what a step of theirs is worth
float int8_round(int32_t* codes, const float* x, int64_t in) { return round_row(codes, x, 1, in); }

// Some panels of one row: the same bits.
void int8_row(float* y, const int32_t* codes, float step, const int8_t* packed, const float* scale,
              const int32_t* offsets, const float* bias, int64_t in, int64_t out, int64_t first,
              int64_t last) {
    int32_t sums[PANEL];
    const Job job{y,       0,    codes, &step,            packed, scale,
                  offsets, bias, sums,  divide_up(in, 4), out,    Tiles(1)};
    for (int64_t panel = first; panel < last; ++panel) run_tile<1>(job, 0, panel, 0, job.in4);
}

}  // extern "C"
