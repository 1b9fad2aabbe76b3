// What a CPU does between the matrix products of a layer: attention over a paged key-value cache (single tokens and
// prompt chunks in one call, rotation of queries and keys included), norms, gated activations, LoRA.
//
// Torch's own kernel reads a padded rectangle of dense keys; this one reads each sequence's blocks, as far as they are
// filled. Keys lie transposed in their block, so that one vector holds the same component of neighbouring tokens and no
// sum has to be taken across a vector. Softmax is exact, in float32, for every storage type.
//
// Layout: keys [blocks, kv_heads, head_size, BLOCK], values [blocks, kv_heads, BLOCK, head_size].

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "step.h"
#include "vectors.h"

namespace {

constexpr int BLOCK = 32;        // tokens of a cache block
constexpr int SMALL = 65536;     // so few elements are done before another thread has woken
constexpr int FEW_PAIRS = 1 << 17;  // so few products of attention are done before another thread has woken
constexpr int LORA_ROWS = 4, LORA_RANKS = 4;  // rows of one adapter, and ranks, that are computed together
constexpr int MOST_HEAD = 512;   // largest head_size that can be rotated here
constexpr int WIDE = 2 * LANES;  // two vectors at a time keep ROWS * 2 sums in registers

// e^x for x <= 0: 2^k times a polynomial of degree 6 on [-ln2/2, ln2/2] (Cephes expf); below -87 it is 0.
inline Vector exp_negative(Vector x) {
  const Vector floor_at = spread(-87.0f);
  const Ints tiny = x < floor_at;
  x = tiny ? floor_at : x;
  const Ints k = __builtin_convertvector(x * 1.44269504f - 0.5f, Ints);  // rounds to nearest, as x is not positive
  const Vector whole = __builtin_convertvector(k, Vector);
  const Vector r = (x - whole * 0.693359375f) - whole * -2.12194440e-4f;
  Vector p = spread(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const Vector scaled = p * (Vector)((k + 127) << 23);
  return tiny ? Vector{} : scaled;
}

}  // namespace

extern "C" int llm_attention_block() { return BLOCK; }
extern "C" int llm_attention_rows() { return ROWS; }
extern "C" int llm_lora_rows() { return LORA_ROWS; }
extern "C" int llm_most_head() { return MOST_HEAD; }

namespace {

// Rotary position embedding of one head (Su et al. 2021), halves paired as in Llama: to[i] = x[i] cos[i] + turned[i] sin[i].
template <typename T>
inline void rotate(const T* x, const float* cosines, const float* sines, int64_t d, float* to) {
  const int64_t half = d / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float low = widen(x[i]), high = widen(x[i + half]);
    to[i] = low * cosines[i] - high * sines[i];
    to[i + half] = high * cosines[i + half] + low * sines[i + half];
  }
}

// T is the number format of queries, keys and values as they come, K that of the cache.
template <typename T, typename K>
void remember(const Step& s, int64_t row) {
  const int64_t d = s.head_size;
  for (int64_t h = 0; h < s.kv_heads; ++h) {
    const int64_t at = (int64_t(s.row_block[row]) * s.kv_heads + h) * BLOCK * d;
    const T* key = static_cast<const T*>(s.key) + row * s.key_row + h * s.key_head;
    const T* value = static_cast<const T*>(s.value) + row * s.value_row + h * s.value_head;
    K* keys = static_cast<K*>(s.keys) + at + s.row_offset[row];
    K* values = static_cast<K*>(s.values) + at + s.row_offset[row] * d;
    if (s.cosines) {
      float turned[MOST_HEAD];
      rotate(key, s.cosines + row * d, s.sines + row * d, d, turned);
      for (int64_t i = 0; i < d; ++i) narrow(turned[i], keys + i * BLOCK);
    } else {
      for (int64_t i = 0; i < d; ++i) narrow(widen(key[i]), keys + i * BLOCK);
    }
    for (int64_t i = 0; i < d; ++i) narrow(widen(value[i]), values + i);
  }
}

// scores[r * stride + t] = query r times key t, for the tokens of one block. Blocks are scattered over memory, where the
// processor's own prefetching can't follow: `next` is the block that will be read after this one.
template <typename K, int R>
void score(const K* keys, const K* next, const float* query, int64_t d, float* scores, int64_t stride) {
  for (int t = 0; t < BLOCK; t += WIDE) {
    Vector sums[R][2] = {};
    for (int64_t i = 0; i < d; ++i) {
      const Vector low = load(keys + i * BLOCK + t), high = load(keys + i * BLOCK + t + LANES);
      __builtin_prefetch(next + i * BLOCK + t);
      __builtin_prefetch(next + i * BLOCK + t + LANES);
      for (int r = 0; r < R; ++r) {
        sums[r][0] += low * query[i * R + r];
        sums[r][1] += high * query[i * R + r];
      }
    }
    for (int r = 0; r < R; ++r) {
      store(scores + r * stride + t, sums[r][0]);
      store(scores + r * stride + t + LANES, sums[r][1]);
    }
  }
}

// out[r, i..i+V*LANES) = sum over t of weight[r, t] * value[t, i..)
template <typename K, int R, int V>
void mix(const Step& s, const int32_t* table, int64_t head, int64_t from, int64_t to, const float* weights,
         int64_t stride, int64_t origin, int64_t i, float* out) {
  Vector sums[R][V] = {};
  for (int64_t block = from / BLOCK; block * BLOCK < to; ++block) {
    const int64_t first = std::max(from, block * BLOCK), last = std::min(to, (block + 1) * BLOCK);
    const K* value = static_cast<const K*>(s.values) +
                     ((int64_t(table[block]) * s.kv_heads + head) * BLOCK + first - block * BLOCK) * s.head_size + i;
    const K* next = static_cast<const K*>(s.values) +
                    (int64_t(table[std::min(block + 1, (to - 1) / BLOCK)]) * s.kv_heads + head) * BLOCK * s.head_size + i;
    for (int64_t t = first; t < last; ++t, value += s.head_size, next += s.head_size) {
      Vector v[V];
      for (int j = 0; j < V; ++j) __builtin_prefetch(next + j * LANES);
      for (int j = 0; j < V; ++j) v[j] = load(value + j * LANES);
      for (int r = 0; r < R; ++r)
        for (int j = 0; j < V; ++j) sums[r][j] += v[j] * weights[r * stride + t - origin];
    }
  }
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < V; ++j) store(out + r * s.head_size + i + j * LANES, sums[r][j]);
}

// Softmax over [from, to) of one row of scores, in place and not yet divided; zero elsewhere. Returns the divisor.
float soften(float* row, int64_t from, int64_t to, int64_t length, const Step& s, int64_t head) {
  for (int64_t t = 0; t < from; ++t) row[t] = -std::numeric_limits<float>::infinity();
  for (int64_t t = to; t < length; ++t) row[t] = -std::numeric_limits<float>::infinity();
  if (s.softcap > 0)
    for (int64_t t = from; t < to; ++t) row[t] = s.softcap * std::tanh(row[t] / s.softcap);
  Vector tops = load(row);
  for (int64_t t = LANES; t < length; t += LANES) {
    const Vector x = load(row + t);
    tops = x > tops ? x : tops;
  }
  float top = s.sinks ? s.sinks[head] : -std::numeric_limits<float>::infinity();
  for (int j = 0; j < LANES; ++j) top = std::max(top, tops[j]);
  Vector sums = {};
  for (int64_t t = 0; t < length; t += LANES) {
    const Vector weight = exp_negative(load(row + t) - top);
    store(row + t, weight);
    sums += weight;
  }
  float sum = s.sinks ? std::exp(s.sinks[head] - top) : 0;
  for (int j = 0; j < LANES; ++j) sum += sums[j];
  return sum;
}

// Up to ROWS queries of one span that share a key head: query number n is head n % group of token n / group.
template <typename T, typename K, int R>
void attend(const Step& s, int64_t span, int64_t head, int64_t first, std::vector<float>& room) {
  const int64_t group = s.heads / s.kv_heads, d = s.head_size;
  const int32_t* table = s.table + s.span_table[span];
  const int64_t start = s.span_start[span];
  const int64_t to = start + (first + R - 1) / group + 1, nearest = start + first / group + 1;
  const int64_t from = s.window > 0 ? std::max<int64_t>(0, nearest - s.window) / BLOCK * BLOCK : 0;
  const int64_t length = (to - from + BLOCK - 1) / BLOCK * BLOCK;
  room.resize(R * length + 2 * R * d);
  float *scores = room.data(), *query = scores + R * length, *out = query + R * d;
  for (int r = 0; r < R; ++r) {
    const int64_t token = (first + r) / group, h = head * group + (first + r) % group;
    const T* q = static_cast<const T*>(s.query) + (s.span_row[span] + token) * s.query_row + h * s.query_head;
    if (s.cosines) {
      const int64_t row = s.span_row[span] + token;
      float turned[MOST_HEAD];
      rotate(q, s.cosines + row * d, s.sines + row * d, d, turned);
      for (int64_t i = 0; i < d; ++i) query[i * R + r] = turned[i] * s.scale;
    } else {
      for (int64_t i = 0; i < d; ++i) query[i * R + r] = widen(q[i]) * s.scale;
    }
  }
  const auto keys = [&](int64_t block) {
    return static_cast<const K*>(s.keys) + (int64_t(table[block]) * s.kv_heads + head) * BLOCK * d;
  };
  for (int64_t block = from / BLOCK, end = (to + BLOCK - 1) / BLOCK; block < end; ++block)
    score<K, R>(keys(block), keys(std::min(block + 1, end - 1)), query, d, scores + block * BLOCK - from, length);
  float divisors[R];
  for (int r = 0; r < R; ++r) {
    const int64_t end = start + (first + r) / group + 1, begin = s.window > 0 ? std::max<int64_t>(0, end - s.window) : 0;
    divisors[r] = soften(scores + r * length, begin - from, end - from, length, s, head * group + (first + r) % group);
  }
  int64_t i = 0;
  for (; i + WIDE <= d; i += WIDE) mix<K, R, 2>(s, table, head, from, to, scores, length, from, i, out);
  for (; i < d; i += LANES) mix<K, R, 1>(s, table, head, from, to, scores, length, from, i, out);
  for (int r = 0; r < R; ++r) {
    const int64_t token = (first + r) / group, h = head * group + (first + r) % group;
    T* to_row = static_cast<T*>(s.out) + ((s.span_row[span] + token) * s.heads + h) * d;
    for (int64_t j = 0; j < d; ++j) narrow(out[r * d + j] / divisors[r], to_row + j);
  }
}

template <typename T, typename K>
void attend_some(const Step& s, int64_t span, int64_t head, int64_t first, int64_t count, std::vector<float>& room) {
  switch (count) {
    case 1: return attend<T, K, 1>(s, span, head, first, room);
    case 2: return attend<T, K, 2>(s, span, head, first, room);
    case 3: return attend<T, K, 3>(s, span, head, first, room);
    case 4: return attend<T, K, 4>(s, span, head, first, room);
#if defined(__AVX512F__)
    case 5: return attend<T, K, 5>(s, span, head, first, room);
    case 6: return attend<T, K, 6>(s, span, head, first, room);
    case 7: return attend<T, K, 7>(s, span, head, first, room);
    case 8: return attend<T, K, 8>(s, span, head, first, room);
#endif
  }
}

inline int64_t useful_threads(const Step& s) {
  int64_t pairs = 0;
  for (int64_t span = 0; span < s.spans; ++span) pairs += int64_t(s.span_count[span]) * (s.span_start[span] + s.span_count[span]);
  return pairs * s.heads * s.head_size > FEW_PAIRS ? s.threads : 1;
}

template <typename T, typename K>
void run(const Step& s) {
  const int64_t group = s.heads / s.kv_heads;
  const int64_t items = int64_t(s.span_tiles[s.spans]) * s.kv_heads;
#pragma omp parallel num_threads(useful_threads(s))
  {
    std::vector<float> room;
#pragma omp for schedule(static)
    for (int64_t row = 0; row < s.rows; ++row) remember<T, K>(s, row);
#pragma omp for schedule(dynamic, 1)
    for (int64_t item = 0; item < items; ++item) {
      // From the last, longest spans to the first: short ones fill the threads' idle ends.
      const int64_t tile = s.span_tiles[s.spans] - 1 - item / s.kv_heads, head = item % s.kv_heads;
      const int64_t span = std::upper_bound(s.span_tiles, s.span_tiles + s.spans + 1, tile) - s.span_tiles - 1;
      const int64_t first = (tile - s.span_tiles[span]) * ROWS;
      const int64_t count = std::min<int64_t>(ROWS, s.span_count[span] * group - first);
      attend_some<T, K>(s, span, head, first, count, room);
    }
  }
}

// out = x / sqrt(mean(x^2) + epsilon) * (offset + weight), row by row (Zhang and Sennrich 2019).
template <typename T>
void normalise(const T* x, const T* weight, T* out, int64_t rows, int64_t size, float epsilon, float offset,
               int64_t threads) {
#pragma omp parallel for num_threads(threads) if (rows * size > SMALL)
  for (int64_t row = 0; row < rows; ++row) {
    const T* from = x + row * size;
    float squares[LANES] = {};
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES)
      for (int j = 0; j < LANES; ++j) squares[j] += widen(from[i + j]) * widen(from[i + j]);
    float sum = 0;
    for (; i < size; ++i) sum += widen(from[i]) * widen(from[i]);
    for (int j = 0; j < LANES; ++j) sum += squares[j];
    const float factor = 1.0f / std::sqrt(sum / size + epsilon);
    for (i = 0; i < size; ++i) narrow(widen(from[i]) * factor * (offset + widen(weight[i])), out + row * size + i);
  }
}

// out = gate * sigmoid(gate) * up (SwiGLU, Shazeer 2020).
template <typename T>
void gate_silu(const T* gate, const T* up, T* out, int64_t count, int64_t threads) {
#pragma omp parallel for num_threads(threads) if (count > SMALL)
  for (int64_t i = 0; i < count / LANES; ++i) {
    const Vector x = load(gate + i * LANES), magnitude = x < 0 ? x : -x;
    const Vector e = exp_negative(magnitude);
    const Vector result = x * (x < 0 ? e : spread(1.0f)) / (e + 1.0f) * load(up + i * LANES);
    store(out + i * LANES, result);
  }
  for (int64_t i = count / LANES * LANES; i < count; ++i) {
    const float x = widen(gate[i]);
    narrow(x / (1.0f + std::exp(-x)) * widen(up[i]), out + i);
  }
}

inline float sum_of(Vector v) {
  float sum = 0;
  for (int j = 0; j < LANES; ++j) sum += v[j];
  return sum;
}

// products[r * rank + j] = x[row r] times row j of a [rank, inputs], for J neighbouring j.
template <typename T, int R, int J>
void lora_down(const T* const* x, const T* a, int64_t inputs, float* products, int64_t rank) {
  Vector sums[R][J] = {};
  int64_t i = 0;
  for (; i + LANES <= inputs; i += LANES) {
    Vector weights[J];
    for (int j = 0; j < J; ++j) weights[j] = load(a + j * inputs + i);
    for (int r = 0; r < R; ++r) {
      const Vector input = load(x[r] + i);
      for (int j = 0; j < J; ++j) sums[r][j] += input * weights[j];
    }
  }
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < J; ++j) {
      float sum = sum_of(sums[r][j]);
      for (int64_t k = i; k < inputs; ++k) sum += widen(x[r][k]) * widen(a[j * inputs + k]);
      products[r * rank + j] = sum;
    }
}

// y[row r] += products[r] times b [rank, outputs].
template <typename T, int R>
void lora_up(T* const* y, const T* b, int64_t outputs, const float* products, int64_t rank) {
  int64_t o = 0;
  for (; o + LANES <= outputs; o += LANES) {
    Vector sums[R];
    for (int r = 0; r < R; ++r) sums[r] = load(y[r] + o);
    for (int64_t j = 0; j < rank; ++j) {
      const Vector weights = load(b + j * outputs + o);
      for (int r = 0; r < R; ++r) sums[r] += weights * products[r * rank + j];
    }
    for (int r = 0; r < R; ++r) store(y[r] + o, sums[r]);
  }
  for (; o < outputs; ++o)
    for (int r = 0; r < R; ++r) {
      float sum = widen(y[r][o]);
      for (int64_t j = 0; j < rank; ++j) sum += products[r * rank + j] * widen(b[j * outputs + o]);
      narrow(sum, y[r] + o);
    }
}

template <typename T, int R>
void lora_tile(const T* const* x, T* const* y, const T* a, const T* b, int64_t rank, int64_t inputs, int64_t outputs,
               std::vector<float>& products) {
  products.resize(R * rank);
  int64_t j = 0;
  for (; j + LORA_RANKS <= rank; j += LORA_RANKS)
    lora_down<T, R, LORA_RANKS>(x, a + j * inputs, inputs, products.data() + j, rank);
  for (; j < rank; ++j) lora_down<T, R, 1>(x, a + j * inputs, inputs, products.data() + j, rank);
  lora_up<T, R>(y, b, outputs, products.data(), rank);
}

// LoRA (Hu et al. 2021) for rows of different adapters: y[row] += x[row] A' B', with A [rank, inputs], B [rank, outputs].
// `order` lists the rows by adapter; a tile is (first place in `order`, number of rows, adapter). a and b are null for
// an adapter that has nothing to add here.
template <typename T>
void lora(const T* x, T* y, int64_t inputs, int64_t outputs, const int32_t* order, const int32_t* tiles, int64_t count,
          const T* const* a, const T* const* b, const int32_t* ranks, int64_t threads) {
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> products;
#pragma omp for schedule(dynamic, 1)
    for (int64_t tile = 0; tile < count; ++tile) {
      const int32_t first = tiles[3 * tile], rows = tiles[3 * tile + 1], adapter = tiles[3 * tile + 2];
      if (!a[adapter]) continue;
      const T* in[LORA_ROWS];
      T* out[LORA_ROWS];
      for (int r = 0; r < rows; ++r) in[r] = x + order[first + r] * inputs, out[r] = y + order[first + r] * outputs;
      switch (rows) {
        case 1: lora_tile<T, 1>(in, out, a[adapter], b[adapter], ranks[adapter], inputs, outputs, products); break;
        case 2: lora_tile<T, 2>(in, out, a[adapter], b[adapter], ranks[adapter], inputs, outputs, products); break;
        case 3: lora_tile<T, 3>(in, out, a[adapter], b[adapter], ranks[adapter], inputs, outputs, products); break;
        default: lora_tile<T, 4>(in, out, a[adapter], b[adapter], ranks[adapter], inputs, outputs, products);
      }
    }
  }
}

}  // namespace

extern "C" void llm_attention_float32(const Step* step) { run<float, float>(*step); }
extern "C" void llm_attention_bfloat16(const Step* step) { run<BFloat16, BFloat16>(*step); }
extern "C" void llm_attention_float32_bfloat16(const Step* step) { run<float, BFloat16>(*step); }  // the cache is narrower

#define FOR_EACH_TYPE(NAME, TYPE)                                                                                   \
  extern "C" void llm_rms_norm_##NAME(const TYPE* x, const TYPE* weight, TYPE* out, int64_t rows, int64_t size,     \
                                      int64_t threads, float epsilon, float offset) {                               \
    normalise<TYPE>(x, weight, out, rows, size, epsilon, offset, threads);                                          \
  }                                                                                                                 \
  extern "C" void llm_lora_##NAME(const TYPE* x, TYPE* y, int64_t inputs, int64_t outputs, const int32_t* order,    \
                                  const int32_t* tiles, int64_t count, const TYPE* const* a, const TYPE* const* b,   \
                                  const int32_t* ranks, int64_t threads) {                                           \
    lora<TYPE>(x, y, inputs, outputs, order, tiles, count, a, b, ranks, threads);                                    \
  }                                                                                                                 \
  extern "C" void llm_gate_silu_##NAME(const TYPE* gate, const TYPE* up, TYPE* out, int64_t count, int64_t threads) { \
    gate_silu<TYPE>(gate, up, out, count, threads);                                                                 \
  }
FOR_EACH_TYPE(float32, float)
FOR_EACH_TYPE(bfloat16, BFloat16)
