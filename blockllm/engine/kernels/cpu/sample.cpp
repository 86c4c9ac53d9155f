// Tokens of rows of logits: the most likely one, or one that is drawn: softmax at a temperature,
// filters, and the token at which the running sum of what is kept passes the row's random number.
// Nothing of the vocabulary is sorted but the tokens that may be kept. The plain twins are
// sampling/sampler.py and sampling/choose.py.

#include "exponential.h"

#include <algorithm>
#include <cstdint>
#include <functional>
#include <vector>

namespace blockllm {
namespace {

constexpr int64_t BLOCK = 256;  // weights whose sum is kept: a draw looks into one block only
constexpr int HALVINGS = 10;    // of the range of floats when bounding what may be kept: to 1/8
constexpr double ROUNDING = 1e-5;  // more than sums of a block are off by

struct Row {
    std::vector<float> weights;       // [vocab], the largest is 1
    std::vector<double> sums;         // [blocks]
    std::vector<uint64_t> candidates;  // weight, then index from behind: descending is our order
    double mass;

    explicit Row(int64_t vocab) : weights(vocab), sums((vocab + BLOCK - 1) / BLOCK) {}
    int64_t vocab() const { return static_cast<int64_t>(weights.size()); }
};

uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

float float_of(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

float weight_of(uint64_t candidate) { return float_of(candidate >> 32); }

int64_t index_of(uint64_t candidate) { return ~static_cast<uint32_t>(candidate); }

float largest_of(const float* values, int64_t count) {
    float largest = values[0];
#pragma omp simd reduction(max : largest)
    for (int64_t i = 0; i < count; ++i) largest = values[i] > largest ? values[i] : largest;
    return largest;
}

// weights = exp((logits - largest) / temperature), 0 below least
void weigh(Row& row, const float* logits, float temperature, float least) {
    const int64_t vocab = row.vocab();
    float* weights = row.weights.data();
    const float largest = largest_of(logits, vocab);
    row.mass = 0;
    for (int64_t from = 0; from < vocab; from += BLOCK) {
        const int64_t end = std::min(from + BLOCK, vocab);
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = from; i < end; ++i) {
            const float weight = exp_negative((logits[i] - largest) / temperature);
            weights[i] = weight < least ? 0.0f : weight;
            sum += weights[i];
        }
        row.sums[from / BLOCK] = sum;
        row.mass += sum;
    }
}

int64_t draw_any(const Row& row, double u) {
    const double target = u * row.mass;
    double before = 0;
    for (int64_t from = 0; from < row.vocab(); from += BLOCK) {
        const double sum = row.sums[from / BLOCK];
        if (before + sum <= target) {
            before += sum;
            continue;
        }
        const int64_t end = std::min(from + BLOCK, row.vocab());
        for (int64_t i = from; i < end; ++i)
            if ((before += row.weights[i]) > target) return i;
    }
    int64_t last = row.vocab() - 1;  // sums in another order may miss the target by a last bit
    while (row.weights[last] == 0) --last;
    return last;
}

struct Share {
    int64_t count;
    double mass;
};

// Of the tokens with at least this weight.
Share share_from(const Row& row, float least) {
    const float* weights = row.weights.data();
    Share share{0, 0};
    for (int64_t from = 0; from < row.vocab(); from += BLOCK) {
        const int64_t end = std::min(from + BLOCK, row.vocab());
        float mass = 0;
        int32_t count = 0;
#pragma omp simd reduction(+ : mass, count)
        for (int64_t i = from; i < end; ++i) {
            const bool is_in = weights[i] >= least;
            mass += is_in ? weights[i] : 0.0f;
            count += is_in;
        }
        share.mass += mass;
        share.count += count;
    }
    return share;
}

// A weight that is small enough: all tokens that the filters keep have at least as much.
float bound(const Row& row, int64_t top_k, double top_p) {
    const double enough = top_p * row.mass * (1 + ROUNDING);
    uint32_t low = 1, high = bits_of(1.0f);  // from the least weight above 0
    for (int step = 0; step < HALVINGS; ++step) {
        const uint32_t middle = low + (high - low) / 2;
        const Share share = share_from(row, float_of(middle));
        // what top_p keeps of the best top_k is known once these are
        const bool suffices = top_k < row.vocab() ? share.count >= top_k : share.mass >= enough;
        (suffices ? low : high) = middle;
    }
    return float_of(low);
}

int64_t draw_filtered(Row& row, int64_t top_k, double top_p, double u) {
    const float least = bound(row, top_k, top_p);
    row.candidates.clear();
    for (int64_t i = 0; i < row.vocab(); ++i)
        if (row.weights[i] >= least)
            row.candidates.push_back(uint64_t(bits_of(row.weights[i])) << 32 | ~uint32_t(i));
    std::sort(row.candidates.begin(), row.candidates.end(), std::greater<>());
    double total = row.mass;
    if (top_k < row.vocab()) {
        total = 0;
        row.candidates.resize(std::min<size_t>(top_k, row.candidates.size()));
        for (const uint64_t candidate : row.candidates) total += weight_of(candidate);
    }
    double kept = 0;
    size_t count = 0;
    while (count < row.candidates.size() && (count == 0 || kept < top_p * total))
        kept += weight_of(row.candidates[count++]);
    double sum = 0;
    for (size_t i = 0; i < count; ++i) {
        sum += weight_of(row.candidates[i]);
        if (sum > u * kept) return index_of(row.candidates[i]);
    }
    return index_of(row.candidates[count - 1]);
}

}  // namespace
}  // namespace blockllm

using namespace blockllm;

extern "C" {

// tokens [rows]: the first of each row's largest logits; finite [rows]: whether that one is finite
// and no logit is a NaN
void best_rows(int64_t* tokens, bool* finite, const float* logits, int64_t stride, int64_t rows,
               int64_t vocab, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t row = 0; row < rows; ++row) {
        const float* own = logits + row * stride;
        float largest = own[0];
        int64_t block = 0;  // where it is
        int32_t unordered = 0;
        for (int64_t from = 0; from < vocab; from += BLOCK) {
            const int64_t end = std::min(from + BLOCK, vocab);
            float most = own[from];
#pragma omp simd reduction(max : most) reduction(+ : unordered)
            for (int64_t i = from; i < end; ++i) {
                most = own[i] > most ? own[i] : most;
                unordered += own[i] != own[i];
            }
            if (most > largest) largest = most, block = from;
        }
        finite[row] = !unordered && std::isfinite(largest);
        tokens[row] = finite[row] ? std::find(own + block, own + vocab, largest) - own : 0;
    }
}

// tokens [count]: drawn from rows [count] of logits, `stride` apart, each by its own u in [0, 1),
// temperature, least share of the largest (min_p), top_k (vocab: all) and top_p (1: all). Rows
// without a finite largest logit get a token that means nothing.
void draw_rows(int64_t* tokens, const float* logits, int64_t stride, const int64_t* rows,
               const double* u, const float* temperatures, const float* min_p,
               const int64_t* top_k, const double* top_p, int64_t count, int64_t vocab,
               int threads) {
#pragma omp parallel num_threads(threads)
    {
        Row row(vocab);
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < count; ++i) {
            weigh(row, logits + rows[i] * stride, temperatures[i], min_p[i]);
            const bool filters = top_k[i] < vocab || top_p[i] < 1;
            tokens[i] = !(row.mass > 0) ? 0
                        : filters       ? draw_filtered(row, top_k[i], top_p[i], u[i])
                                        : draw_any(row, u[i]);
        }
    }
}

}  // extern "C"
