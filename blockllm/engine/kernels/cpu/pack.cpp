// Weights as they are stored, [out, in], to the panels that the linears read: [panels, in, PANEL] of
// fp32, [panels, in / 2, PANEL, 2] of 16 bits, [panels, ceil(in / 4), PANEL, 4] of int8. In all a
// panel is the transpose of PANEL rows of 4-byte words. Loading should be as fast as memory: each
// line of a weight is read once, each line of a panel written once, and squares of words turn in
// registers. Plain twin: torch's permute, in the tests.

#include "transpose.h"

#include <algorithm>

namespace blockllm {
namespace {

constexpr int64_t CHUNK = 1 << 21;  // bytes that a thread takes at once: a huge page of x86

constexpr int64_t WIDTH = sizeof(words);

// The next `bytes` of each of LANES rows, a vector at most, to as many columns of a panel.
inline void pack_square(uint32_t* to, const char* from, int64_t row_bytes, int64_t bytes) {
    words square[LANES];
    for (int r = 0; r < LANES; ++r, from += row_bytes) {
        if (bytes < WIDTH) square[r] = words{};
        std::memcpy(&square[r], from, bytes);
        __builtin_prefetch(from + WIDTH, 0, 2);
    }
    transpose(square);
    for (int64_t c = 0; c < divide_up(bytes, 4); ++c)
        std::memcpy(to + c * PANEL, &square[c], WIDTH);
}

void pack_panel(uint32_t* to, const char* from, int64_t row_bytes) {
    int64_t at = 0;
    for (; at + WIDTH <= row_bytes; at += WIDTH, to += LANES * PANEL)
        for (int r = 0; r < PANEL; r += LANES)
            pack_square(to + r, from + r * row_bytes + at, row_bytes, WIDTH);
    for (int r = 0; at < row_bytes && r < PANEL; r += LANES)
        pack_square(to + r, from + r * row_bytes + at, row_bytes, row_bytes - at);
}

// One row of a panel that it shares with another weight or with padding.
void pack_row(uint32_t* to, const char* from, int64_t row_bytes) {
    for (int64_t at = 0; at < row_bytes; at += 4, to += PANEL) {
        *to = 0;
        std::memcpy(to, from + at, std::min<int64_t>(row_bytes - at, 4));
    }
}

struct Weight {
    const char* rows;
    int64_t first, count;  // of all outputs: first .. first + count
    int64_t row_bytes;
    const char* row(int64_t output) const { return rows + (output - first) * row_bytes; }
};

// Outputs begin..end, of one panel.
void pack_outputs(uint32_t* panel, const Weight& weight, int64_t begin, int64_t end) {
    if (end - begin == PANEL) return pack_panel(panel, weight.row(begin), weight.row_bytes);
    for (int64_t output = begin; output < end; ++output)
        pack_row(panel + output % PANEL, weight.row(output), weight.row_bytes);
}

// Calls look(begin, end) for runs of outputs that were just packed and are in cache.
template <typename Look>
void pack(uint32_t* packed, const Weight& weight, int threads, Look&& look) {
    const int64_t size = divide_up(weight.row_bytes, 4) * PANEL;  // words of a panel
    const int64_t first = weight.first / PANEL, last = weight.first + weight.count;
    const int64_t panels = divide_up(last, PANEL) - first, share = divide_up(panels, threads);
    const int64_t chunk = std::max<int64_t>(std::min(CHUNK / (4 * size), share), 1);
#pragma omp parallel for schedule(dynamic, chunk) num_threads(threads)
    for (int64_t panel = first; panel < first + panels; ++panel) {
        const int64_t begin = std::max(panel * PANEL, weight.first);
        const int64_t end = std::min(panel * PANEL + PANEL, last);
        pack_outputs(packed + panel * size, weight, begin, end);
        look(begin, end);
    }
}

}  // namespace
}  // namespace blockllm

using namespace blockllm;

extern "C" {

extern const int32_t panel_width = PANEL;

// weight [out, words] -> outputs first_row.. of packed [panels, words, PANEL], whose other outputs
// stay as they are
void linear_pack(void* packed, const void* weight, int64_t first_row, int64_t out, int64_t words,
                 int threads) {
    const Weight rows{static_cast<const char*>(weight), first_row, out, words * 4};
    pack(static_cast<uint32_t*>(packed), rows, threads, [](int64_t, int64_t) {});
}

// weight [out, in] int8 -> outputs first_row.. of packed [panels, in / 4, PANEL, 4]; offsets [out]
// are of all outputs
void int8_pack(int8_t* packed, int32_t* offsets, const int8_t* weight, int64_t first_row,
               int64_t out, int64_t in, int threads) {
    const Weight rows{reinterpret_cast<const char*>(weight), first_row, out, in};
    pack(reinterpret_cast<uint32_t*>(packed), rows, threads, [&](int64_t begin, int64_t end) {
        for (int64_t output = begin; output < end; ++output) {
            const int8_t* row = weight + (output - first_row) * in;
            int32_t sum = 0;
            for (int64_t k = 0; k < in; ++k) sum += row[k];
            offsets[output] = ROUND_ZERO * sum;
        }
    });
}

}  // extern "C"
