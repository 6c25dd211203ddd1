// Scores of few tokens: each token times each key.
//
// A general product first copies the keys into another order, which takes most of its time if few
// tokens use them. Here a tile of four keys times four tokens reads the keys in place. A score is
// summed in the lanes of `row::dot`, so it has the same bits whatever the tile it is in, and depends
// neither on the other tokens nor on the number of atoms.
//
// Letters: T tokens, N atoms, D inputs.

#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <cstring>

#include "rows.h"

namespace scores {

constexpr int kTile = 4;  // keys, and tokens, of a tile
constexpr int64_t kProductsATask = 1 << 16;

using Lanes = row::Vector<float>::type;
typedef int32_t Places __attribute__((vector_size(64)));
constexpr int kLanes = row::Vector<float>::lanes;

// Tokens for which tiles are faster, as measured. The sixteen sums of a tile fit into the registers of
// AVX-512 alone; elsewhere only a single token, with four sums, is.
inline int64_t few_tokens() {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
  static const bool wide = __builtin_cpu_supports("avx512vl");
  return wide ? 16 : 1;
#else
  return 1;
#endif
}

// The lanes of two groups of sums, each halved: a's sums, then b's. `half`: lanes left of each sum.
template <int half>
inline __attribute__((always_inline)) Lanes halved(Lanes a, Lanes b) {
  Places low, high;
  for (int i = 0; i < kLanes; ++i) {
    const int within = i % (kLanes / 2);
    low[i] = i / (kLanes / 2) * kLanes + within / half * 2 * half + within % half;
    high[i] = low[i] + half;
  }
#ifdef __clang__
  Lanes x, y;
  for (int i = 0; i < kLanes; ++i) {
    x[i] = low[i] < kLanes ? a[low[i]] : b[low[i] - kLanes];
    y[i] = high[i] < kLanes ? a[high[i]] : b[high[i] - kLanes];
  }
  return x + y;
#else
  return __builtin_shuffle(a, b, low) + __builtin_shuffle(a, b, high);
#endif
}

// The sum of the lanes of each of 16 vectors.
inline __attribute__((always_inline)) Lanes sums_of_lanes(Lanes* sum) {
  for (int i = 0; i < 8; ++i) sum[i] = halved<8>(sum[2 * i], sum[2 * i + 1]);
  for (int i = 0; i < 4; ++i) sum[i] = halved<4>(sum[2 * i], sum[2 * i + 1]);
  for (int i = 0; i < 2; ++i) sum[i] = halved<2>(sum[2 * i], sum[2 * i + 1]);
  return halved<1>(sum[0], sum[1]);
}

// The first `count` numbers, then zeros.
inline __attribute__((always_inline)) Lanes loaded(const float* from, int64_t count) {
  Lanes out = {0};
  std::memcpy(&out, from, count * sizeof(float));
  return out;
}

// `tokens` tokens x times `keys` keys k, each of `width` numbers; a token's scores are `stride` apart.
template <int keys, int tokens>
inline __attribute__((always_inline)) void tile(const float* x, const float* k, int64_t width,
                                                float* score, int64_t stride) {
  Lanes sum[kTile * kTile] = {};
  const int64_t whole = width / kLanes * kLanes;
  auto add = [&](int64_t i, auto load) __attribute__((always_inline)) {
    Lanes token[tokens];
#pragma GCC unroll 4
    for (int t = 0; t < tokens; ++t) token[t] = load(x + t * width + i);
#pragma GCC unroll 4
    for (int n = 0; n < keys; ++n) {
      const Lanes key = load(k + n * width + i);
      __builtin_prefetch(k + (n + keys) * width + i);
#pragma GCC unroll 4
      for (int t = 0; t < tokens; ++t) sum[t * kTile + n] += key * token[t];
    }
  };
  for (int64_t i = 0; i < whole; i += kLanes)
    add(i, [](const float* from) { return row::loaded(from); });
  if (whole < width)
    add(whole, [=](const float* from) { return loaded(from, width - whole); });
  const Lanes all = sums_of_lanes(sum);
  float found[kLanes];
  std::memcpy(found, &all, sizeof(found));
  for (int t = 0; t < tokens; ++t)
    for (int n = 0; n < keys; ++n) score[t * stride + n] = found[t * kTile + n];
}

template <int keys>
inline __attribute__((always_inline)) void tokens_of(const float* x, const float* k, int64_t tokens,
                                                     int64_t width, float* score, int64_t stride) {
  int64_t t = 0;
  for (; t + kTile <= tokens; t += kTile)
    tile<keys, kTile>(x + t * width, k, width, score + t * stride, stride);
  for (; t < tokens; ++t) tile<keys, 1>(x + t * width, k, width, score + t * stride, stride);
}

// Scores (T, N) of the keys from `begin` to `end`.
FOR_WIDE_VECTORS static void keys_of(const float* x, const float* k, int64_t tokens, int64_t width,
                                     float* score, int64_t stride, int64_t begin, int64_t end) {
  int64_t n = begin;
  for (; n + kTile <= end; n += kTile)
    tokens_of<kTile>(x, k + n * width, tokens, width, score + n, stride);
  for (; n < end; ++n) tokens_of<1>(x, k + n * width, tokens, width, score + n, stride);
}

// Scores (T, N) of tokens (T, D) and keys (N, D), into `out`, whose rows are contiguous.
inline void into(at::Tensor out, const at::Tensor& x, const at::Tensor& keys) {
  const int64_t tokens = x.size(0), num = keys.size(0), width = keys.size(1);
  TORCH_CHECK(x.size(1) == width, "tokens of ", x.size(1), " numbers, keys of ", width);
  TORCH_CHECK(out.size(0) == tokens && out.size(1) == num && out.stride(1) == 1,
              "scores need contiguous rows for ", tokens, " tokens and ", num, " keys");
  if (tokens > few_tokens() || x.scalar_type() != at::kFloat || !keys.is_contiguous()) {
    at::mm_out(out, x, keys.t());
    return;
  }
  const at::Tensor rows = x.contiguous();
  const float *token = rows.const_data_ptr<float>(), *key = keys.const_data_ptr<float>();
  float* score = out.mutable_data_ptr<float>();
  const int64_t tiles = (num + kTile - 1) / kTile;
  const int64_t at_once = std::max<int64_t>(1, kProductsATask / (kTile * tokens * width + 1));
  at::parallel_for(0, tiles, at_once, [&](int64_t begin, int64_t end) {
    keys_of(token, key, tokens, width, score, out.stride(0), begin * kTile,
            std::min(end * kTile, num));
  });
}

}  // namespace scores
