// Vector types and small helpers shared by the CPU kernels. GCC and Clang lower them to whatever
// the machine has; the widths are chosen so that accumulators of a tile stay in registers.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace blockllm {

#if defined(__AVX512F__)
constexpr int LANES = 16;
constexpr int TILE = 12;  // rows of x that go through the weights together: 24 accumulators
#else
constexpr int LANES = 8;
constexpr int TILE = 6;  // 12 accumulators
#endif
constexpr int VECTORS = 2;
constexpr int PANEL = VECTORS * LANES;  // outputs whose weights lie together
constexpr int MOST_SUMS = TILE * VECTORS;  // vectors that stay in registers beside what they add
constexpr int32_t ROUND_ZERO = 64;  // what stands for 0 in rows of x rounded to 7 bits

typedef float floats __attribute__((vector_size(LANES * 4)));
typedef uint32_t words __attribute__((vector_size(LANES * 4)));

// Lanes of a and b together, by constants. GCC has had Clang's builtin since version 12 only.
#if defined(__clang__)
#define BLOCKLLM_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define BLOCKLLM_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, words{__VA_ARGS__})
#endif

inline floats load(const float* from) {
    floats value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

inline void store(float* to, floats value) { std::memcpy(to, &value, sizeof value); }

inline words load_words(const void* from) {
    words value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

inline int64_t divide_up(int64_t count, int64_t size) { return (count + size - 1) / size; }

// How rows are cut into tiles of nearly equal height.
struct Tiles {
    int64_t rows, count, height;
    explicit Tiles(int64_t num_rows, int64_t tallest = TILE)
        : rows(num_rows), count(divide_up(num_rows, tallest)), height(num_rows ? divide_up(num_rows, count) : 1) {}
    int64_t start(int64_t tile) const { return tile * height < rows ? tile * height : rows; }
    int64_t size(int64_t tile) const { return start(tile + 1) - start(tile); }
};

// Calls function.template operator()<N>() for N == height, which is 1 ... TILE.
template <int N = TILE, typename Function>
inline void with_height(int64_t height, Function&& function) {
    if constexpr (N == 1) {
        function.template operator()<1>();
    } else if (height == N) {
        function.template operator()<N>();
    } else {
        with_height<N - 1>(height, function);
    }
}

// [height, in] rows, `stride` apart -> [in, height]
inline void pack_rows(float* to, const float* x, int64_t stride, int64_t height, int64_t in) {
    constexpr int64_t BLOCK = 64;  // inputs whose packed form stays in the first-level cache
    for (int64_t from = 0; from < in; from += BLOCK) {
        const int64_t end = from + BLOCK < in ? from + BLOCK : in;
        for (int64_t r = 0; r < height; ++r)
            for (int64_t k = from; k < end; ++k) to[k * height + r] = x[r * stride + k];
    }
}

// Weights of one output as 4-byte words: INPUTS neighbours in each. See codes.h for the others.
struct Floats {
    static constexpr int INPUTS = 1;
    static floats expand(words word, int) { return (floats)word; }
};

// The one inner loop: sums[r] += x[k][r] * weights[k] over k, for WIDTH outputs: neighbours, or of
// panels that lie panel_stride apart; strides are in words, STEP is that of k in x and ROW that of r.
// `ahead` is memory that will be read soon: at every word, ASKED lines of it are asked for, and it
// advances by `ahead_step` bytes. Weights of another code than Floats are left in `expanded`, if
// given: [depth, WIDTH].
template <int HEIGHT, int WIDTH, int ASKED = WIDTH * 4 / 64, typename Code = Floats,
          int STEP = HEIGHT, int ROW = 1, typename Word>
inline void multiply(floats (&sums)[HEIGHT][WIDTH / LANES], const float* x, const Word* weights,
                     int64_t weights_stride, int64_t depth, const char* ahead = nullptr,
                     int64_t ahead_step = 0, int64_t panel_stride = PANEL,
                     float* expanded = nullptr) {
    static_assert(sizeof(Word) == 4);
    constexpr int COUNT = WIDTH / LANES;
    for (int64_t k = 0; k < depth; k += Code::INPUTS, weights += weights_stride) {
        words w[COUNT];
        for (int v = 0; v < COUNT; ++v)
            w[v] = load_words(weights + v / VECTORS * panel_stride + v % VECTORS * LANES);
        for (int line = 0; line < ASKED; ++line) __builtin_prefetch(ahead + line * 64);
        if (ASKED) ahead += ahead_step;
        for (int i = 0; i < Code::INPUTS; ++i) {
            floats own[COUNT];
            for (int v = 0; v < COUNT; ++v) own[v] = Code::expand(w[v], i);
            if (Code::INPUTS > 1 && expanded)
                for (int v = 0; v < COUNT; ++v, expanded += LANES) store(expanded, own[v]);
            for (int r = 0; r < HEIGHT; ++r)
                for (int v = 0; v < COUNT; ++v) sums[r][v] += x[(k + i) * STEP + r * ROW] * own[v];
        }
    }
}

}  // namespace blockllm
