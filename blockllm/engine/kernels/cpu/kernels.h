// The kernels that others call; what they do is written where they are defined.
#pragma once

#include <cstdint>

extern "C" {

void linear_run(float* y, int64_t y_stride, const float* x, int64_t x_stride, const void* packed,
                int64_t code, const float* bias, float* scratch, int64_t rows, int64_t in,
                int64_t out, int threads);
void int8_run(float* y, int64_t y_stride, const float* x, int64_t x_stride, const int8_t* packed,
              const float* scale, const int32_t* offsets, const float* bias, int32_t* scratch,
              int64_t rows, int64_t in, int64_t out, int threads);
void lora_run(float* y, int64_t y_stride, const float* x, int64_t x_stride,
              const int32_t* segments, int64_t num_segments, const void* linear, int threads);
void rms_norm(float* out, const float* x, const float* weight, int64_t rows, int64_t inner,
              int64_t dim, int64_t out_stride, int64_t x_stride, float eps, int threads);
void silu_multiply(float* out, const float* gate_up, int64_t rows, int64_t size, int threads);
void rotate_and_write(float* qkv, const float* cos, const float* sin, const int64_t* rotations,
                      float* keys, int64_t page_stride, int64_t value_stride, const int64_t* write_pages,
                      const int64_t* write_offsets, int64_t rows, int64_t heads, int64_t kv_heads,
                      int64_t dim, int64_t page_size, int threads);
void paged_decode(float* out, const float* q, int64_t q_stride, const float* keys,
                  int64_t page_stride, int64_t value_stride, const int32_t* tables,
                  int64_t table_stride, const int64_t* contexts, int64_t n, int64_t heads,
                  int64_t kv_heads, int64_t dim, int64_t page_size, int64_t window, float scale,
                  int threads);
void paged_prefill(float* out, int64_t out_stride, const float* q, int64_t q_stride,
                   const float* keys, int64_t page_stride, int64_t value_stride,
                   const int32_t* tables, int64_t table_stride, const int32_t* tiles,
                   int64_t num_tiles, int64_t heads, int64_t kv_heads, int64_t dim,
                   int64_t page_size, int64_t window, float scale, int threads);

// Parts of the above for one row, to be shared out by the caller's threads.
void linear_row(float* y, const float* x, const void* packed, int64_t code, const float* bias,
                int64_t in, int64_t out, int64_t first, int64_t last);
float int8_round(int32_t* codes, const float* x, int64_t in);
void int8_row(float* y, const int32_t* codes, float step, const int8_t* packed, const float* scale,
              const int32_t* offsets, const float* bias, int64_t in, int64_t out, int64_t first,
              int64_t last);
void decode_heads(float* out, const float* q, const float* keys, int64_t page_stride,
                  int64_t value_stride, const int32_t* table, int64_t context, int64_t head,
                  int64_t num, int64_t heads, int64_t kv_heads, int64_t dim, int64_t page_size,
                  int64_t window, float scale);

}  // extern "C"
