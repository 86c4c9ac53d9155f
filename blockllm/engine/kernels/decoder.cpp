// CPU kernels of the decoder in fp32: what is left of a step between the big linears.
// Built at first use by kernels/build.py; every function has a plain twin in kernels/plain.py.
// All row counts and sizes are checked by the Python side. Threads come from torch's OpenMP pool.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

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

struct Pages {
    const float* data;      // [pages, ..., 2, page_size, kv_heads, dim], from one layer's keys
    int64_t page_stride;    // floats from page to page
    int64_t value_stride;   // floats from a page's keys to its values
    int64_t page_size, kv_heads;
};

template <int DIM>
inline float dot(const float* a, const float* b, int64_t dim) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t d = 0; d < (DIM ? DIM : dim); ++d) sum += a[d] * b[d];
    return sum;
}

inline void prefetch(const float* from, int64_t floats) {
    for (int64_t i = 0; i < floats; i += 16) __builtin_prefetch(from + i);
}

// Calls visit(rows of this page, first token, number of tokens) for every page of tokens
// first..context, asking for the next page's memory before.
template <typename Visit>
void each_page(const Pages& pages, const int32_t* table, int64_t offset, int64_t width,
               int64_t first, int64_t context, Visit visit) {
    const int64_t size = pages.page_size;
    for (int64_t p = first / size; p * size < context; ++p) {
        const float* rows = pages.data + table[p] * pages.page_stride + offset;
        if ((p + 1) * size < context)
            prefetch(pages.data + table[p + 1] * pages.page_stride + offset, size * width);
        const int64_t from = p * size > first ? p * size : first;
        const int64_t to = (p + 1) * size < context ? (p + 1) * size : context;
        visit(rows + (from - p * size) * width, from - first, to - from);
    }
}

void softmax(float* row, int64_t count) {
    float best = row[0], total = 0;
    for (int64_t t = 1; t < count; ++t) best = row[t] > best ? row[t] : best;
#pragma omp simd reduction(+ : total)
    for (int64_t t = 0; t < count; ++t) {
        row[t] = exp_negative(row[t] - best);
        total += row[t];
    }
    const float inverse = 1.0f / total;
#pragma omp simd
    for (int64_t t = 0; t < count; ++t) row[t] *= inverse;
}

// KV heads head..head + num of one sequence with all query heads that share them; q and out
// point at the first of those. Softmax over tokens first..context.
template <int DIM>
void attend_heads(float* out, const float* q, const Pages& pages, const int32_t* table,
                  int64_t head, int64_t num, int64_t groups, int64_t first, int64_t context,
                  float scale, int64_t any_dim, std::vector<float>& scratch) {
    const int64_t dim = DIM ? DIM : any_dim;
    const int64_t count = context - first, width = pages.kv_heads * dim;
    scratch.resize(num * groups * count);
    float* weights = scratch.data();  // [num * groups, count]
    each_page(pages, table, 0, width, first, context,
              [&](const float* keys, int64_t start, int64_t tokens) {
        for (int64_t h = 0; h < num * groups; ++h) {
            const float *query = q + h * dim, *key = keys + (head + h / groups) * dim;
            float* row = weights + h * count + start;
            for (int64_t t = 0; t < tokens; ++t) row[t] = dot<DIM>(query, key + t * width, dim);
        }
    });
    for (int64_t h = 0; h < num * groups; ++h) {
        float* row = weights + h * count;
        for (int64_t t = 0; t < count; ++t) row[t] *= scale;
        softmax(row, count);
    }
    std::memset(out, 0, sizeof(float) * num * groups * dim);
    each_page(pages, table, pages.value_stride, width, first, context,
              [&](const float* values, int64_t start, int64_t tokens) {
        for (int64_t h = 0; h < num * groups; ++h) {
            const float* value = values + (head + h / groups) * dim;
            const float* row = weights + h * count + start;
            float *to = out + h * dim, sum[DIM ? DIM : 1];
            if constexpr (DIM > 0) {  // sums stay in registers over the page
                std::memcpy(sum, to, sizeof sum);
                for (int64_t t = 0; t < tokens; ++t)
#pragma omp simd
                    for (int d = 0; d < DIM; ++d) sum[d] += row[t] * value[t * width + d];
                std::memcpy(to, sum, sizeof sum);
            } else {
                for (int64_t t = 0; t < tokens; ++t)
                    for (int64_t d = 0; d < dim; ++d) to[d] += row[t] * value[t * width + d];
            }
        }
    });
}

}  // namespace

extern "C" {

// out [n, heads, dim]; q: rows of q_stride floats; tables: rows of table_stride page numbers
void paged_decode(float* out, const float* q, int64_t q_stride, const float* keys,
                  int64_t page_stride, int64_t value_stride, const int32_t* tables,
                  int64_t table_stride, const int64_t* contexts, int64_t n, int64_t heads,
                  int64_t kv_heads, int64_t dim, int64_t page_size, int64_t window, float scale,
                  int threads) {
    const Pages pages{keys, page_stride, value_stride, page_size, kv_heads};
    const int64_t groups = heads / kv_heads;
    // whole sequences read memory in order; few sequences are split by head to use all threads
    const int64_t num = n >= 2 * threads || threads == 1 ? kv_heads : 1, parts = kv_heads / num;
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> scratch;
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < n * parts; ++task) {
            const int64_t i = task / parts, head = task % parts * num, context = contexts[i];
            const int64_t first = window && context > window ? context - window : 0;
            const int32_t* table = tables + i * table_stride;
            const float* query = q + i * q_stride + head * groups * dim;
            float* to = out + (i * heads + head * groups) * dim;
            auto run = dim == 64    ? attend_heads<64>
                       : dim == 128 ? attend_heads<128>
                       : dim == 96  ? attend_heads<96>
                       : dim == 80  ? attend_heads<80>
                                    : attend_heads<0>;
            run(to, query, pages, table, head, num, groups, first, context, scale, dim, scratch);
        }
    }
}

// Rotate the query and key heads of qkv [rows, heads + 2 kv_heads, dim] in place, then put keys
// and values on their pages. cos, sin: [rows, dim], both halves alike.
void rotate_and_write(float* qkv, const float* cos, const float* sin, float* keys,
                      int64_t page_stride, int64_t value_stride, const int64_t* write_pages,
                      const int64_t* write_offsets, int64_t rows, int64_t heads, int64_t kv_heads,
                      int64_t dim, int threads) {
    const int64_t half = dim / 2, row_size = (heads + 2 * kv_heads) * dim, width = kv_heads * dim;
#pragma omp parallel for num_threads(threads) if (rows * row_size > 16384)
    for (int64_t r = 0; r < rows; ++r) {
        float* row = qkv + r * row_size;
        const float *c = cos + r * dim, *s = sin + r * dim;
        for (int64_t h = 0; h < heads + kv_heads; ++h) {
            float *left = row + h * dim, *right = left + half;
#pragma omp simd
            for (int64_t d = 0; d < half; ++d) {
                const float a = left[d], b = right[d];
                left[d] = a * c[d] - b * s[d];
                right[d] = b * c[d + half] + a * s[d + half];
            }
        }
        float* key = keys + write_pages[r] * page_stride + write_offsets[r] * width;
        std::memcpy(key, row + heads * dim, sizeof(float) * width);
        std::memcpy(key + value_stride, row + heads * dim + width, sizeof(float) * width);
    }
}

// out = x / rms(x) * weight over the last dimension; rows of x lie x_stride apart in groups of
// `inner` neighbouring vectors (inner > 1: heads inside a fused row). out may be x.
void rms_norm(float* out, const float* x, const float* weight, int64_t rows, int64_t inner,
              int64_t dim, int64_t out_stride, int64_t x_stride, float eps, int threads) {
#pragma omp parallel for num_threads(threads) if (rows * inner * dim > 16384)
    for (int64_t task = 0; task < rows * inner; ++task) {
        const float* from = x + task / inner * x_stride + task % inner * dim;
        float* to = out + task / inner * out_stride + task % inner * dim;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t d = 0; d < dim; ++d) sum += from[d] * from[d];
        const float scale = 1.0f / std::sqrt(sum / static_cast<float>(dim) + eps);
#pragma omp simd
        for (int64_t d = 0; d < dim; ++d) to[d] = from[d] * scale * weight[d];
    }
}

// out [rows, size] = silu(gate) * up, where gate_up is [rows, 2 * size]
void silu_multiply(float* out, const float* gate_up, int64_t rows, int64_t size, int threads) {
#pragma omp parallel for num_threads(threads) if (rows * size > 16384)
    for (int64_t r = 0; r < rows; ++r) {
        const float *gate = gate_up + r * 2 * size, *up = gate + size;
        float* to = out + r * size;
#pragma omp simd
        for (int64_t d = 0; d < size; ++d) {
            // of the two forms of the sigmoid, the one whose exponent is not positive
            const float e = exp_negative(gate[d] > 0 ? -gate[d] : gate[d]);
            const float sigmoid = (gate[d] > 0 ? 1.0f : e) / (1.0f + e);
            to[d] = gate[d] * sigmoid * up[d];
        }
    }
}

}  // extern "C"
