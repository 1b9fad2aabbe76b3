// All layers of a decoder in one call. With one row, a kernel runs for some 50 microseconds; going back to Python between
// two of them takes as long again, and the second thread falls asleep meanwhile.
//
// The form is that of Llama, Mistral, Qwen2 and Qwen3:
//   x += out(attention(q, k, v)) with q, k, v = in(norm(x)), q and k normed by head and rotated
//   x += down(silu(gate) * up) with gate, up = in(norm(x))
// Each part is computed by the function that computes it alone, so nothing differs to the last bit.

#include <algorithm>
#include <cstdint>
#include <memory>

#include "step.h"
#include "vectors.h"

// Layers that read the same input: a product of products.cpp, and what it takes.
struct Projection {
  void* product;
  const struct Layer* layers;
  int64_t count, inputs;
};

struct DecoderLayer {
  const void *attention_norm, *query_norm, *key_norm, *gate_norm;  // those of queries and keys may be null
  Projection attention_in, attention_out, gate_in, gate_out;
  void *keys, *values;  // the layer's cache
  int64_t window;       // 0: none
};

struct Decoder {
  const DecoderLayer* layers;
  void (*attention)(const Step*);  // of kernels.cpp, for the number format of the cache
  int64_t count, hidden, gates, heads, kv_heads, head_size;
  float epsilon, scale;
};

namespace {

template <typename T> struct Kernels;

#define KERNELS(NAME, TYPE)                                                                                           \
  }                                                                                                                   \
  extern "C" void llm_rms_norm_##NAME(const TYPE* x, const TYPE* weight, TYPE* out, int64_t rows, int64_t size,       \
                                      int64_t threads, float epsilon, float offset);                                  \
  extern "C" void llm_gate_silu_##NAME(const TYPE* gate, const TYPE* up, TYPE* out, int64_t count, int64_t threads);  \
  namespace {                                                                                                         \
  template <> struct Kernels<TYPE> {                                                                                  \
    static constexpr auto rms_norm = llm_rms_norm_##NAME;                                                             \
    static constexpr auto gate_silu = llm_gate_silu_##NAME;                                                           \
  };
KERNELS(float32, float)
KERNELS(bfloat16, BFloat16)

template <typename T>
void project(const Projection& to, const T* x, T* out, const Step& step) {
  typedef void (*Product)(const T*, T*, int64_t, int64_t, const Layer*, int64_t, int64_t);
  reinterpret_cast<Product>(to.product)(x, out, step.rows, to.inputs, to.layers, to.count, step.threads);
}

template <typename T>
void add(const T* y, T* x, int64_t count) {
  for (int64_t i = 0; i < count; ++i) narrow(widen(x[i]) + widen(y[i]), x + i);
}

template <typename T>
void decode(const Decoder& d, Step step, T* x) {
  const int64_t rows = step.rows, queries = d.heads * d.head_size, keys = d.kv_heads * d.head_size;
  const auto norm = [&](const T* from, const void* weight, T* to, int64_t count, int64_t size) {
    Kernels<T>::rms_norm(from, static_cast<const T*>(weight), to, count, size, step.threads, d.epsilon, 0);
  };
  std::unique_ptr<T[]> normed(new T[rows * d.hidden]), wide(new T[rows * std::max(queries + 2 * keys, 2 * d.gates)]),
      attended(new T[rows * queries]);
  T *query = wide.get(), *key = query + rows * queries, *value = key + rows * keys;
  step.query = query, step.key = key, step.value = value, step.out = attended.get();
  step.query_row = queries, step.key_row = step.value_row = keys;
  step.query_head = step.key_head = step.value_head = step.head_size = d.head_size;
  step.heads = d.heads, step.kv_heads = d.kv_heads;
  step.sinks = nullptr;
  step.scale = d.scale, step.softcap = 0;
  for (const DecoderLayer* layer = d.layers; layer < d.layers + d.count; ++layer) {
    norm(x, layer->attention_norm, normed.get(), rows, d.hidden);
    project(layer->attention_in, normed.get(), query, step);
    if (layer->query_norm) norm(query, layer->query_norm, query, rows * d.heads, d.head_size);
    if (layer->key_norm) norm(key, layer->key_norm, key, rows * d.kv_heads, d.head_size);
    step.keys = layer->keys, step.values = layer->values, step.window = layer->window;
    d.attention(&step);
    project(layer->attention_out, attended.get(), normed.get(), step);
    add(normed.get(), x, rows * d.hidden);

    norm(x, layer->gate_norm, normed.get(), rows, d.hidden);
    T *gate = wide.get(), *up = gate + rows * d.gates;
    project(layer->gate_in, normed.get(), gate, step);
    Kernels<T>::gate_silu(gate, up, gate, rows * d.gates, step.threads);
    project(layer->gate_out, gate, normed.get(), step);
    add(normed.get(), x, rows * d.hidden);
  }
}

}  // namespace

// x [rows, hidden] becomes what the last layer gives out. `step` has the spans, and cosines and sines.
extern "C" void llm_decode_float32(const Decoder* decoder, const Step* step, float* x) { decode(*decoder, *step, x); }
extern "C" void llm_decode_bfloat16(const Decoder* decoder, const Step* step, BFloat16* x) { decode(*decoder, *step, x); }
