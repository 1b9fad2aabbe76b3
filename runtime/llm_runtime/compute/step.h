// A step of the engine, as the runner describes it to the kernels.
#pragma once

#include <cstdint>

// The same for all layers but for the pointers of the first group.
// A span is a run of tokens of one sequence; token i of span s has position span_start[s] + i and row span_row[s] + i.
struct Step {
  const void *query, *key, *value;  // [heads, rows, head_size] with the strides below, in elements
  void *keys, *values, *out;        // the layer's cache; out [rows, heads, value_size]
  const float* sinks;               // per head, or null: a logit that takes part in the softmax and has no value
  const float *cosines, *sines;     // [rows, head_size], or null: queries and keys come rotated
  int64_t query_row, query_head, key_row, key_head, value_row, value_head;
  int64_t heads, kv_heads, head_size, rows, spans, threads, window;  // window 0: none
  float scale, softcap;             // softcap 0: none
  const int32_t *span_row, *span_start, *span_count, *span_tiles;  // tiles: cumulative, [spans + 1]
  const int32_t *table, *span_table;      // block numbers of all spans; where each span's begin
  const int32_t *row_block, *row_offset;  // where each row's key and value go
};
