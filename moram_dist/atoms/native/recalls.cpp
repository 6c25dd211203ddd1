// A whole recall on a CPU as one operation, and its gradients as another: the same products and sums,
// in the same order, as by the operations in operations.cpp, so the same bits.
//
// Letters: T tokens, L linears, N atoms, R active ones, K atoms kept per token, D inputs, E outputs.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <tuple>

#include "rows.h"
#include "scores.h"

namespace {

using at::Tensor;

// What is computed for each token of a linear.
template <typename F>
struct Routing {
  int64_t num, kept, width;  // N, K, E
  F tau, threshold;
  bool dense;         // whether all values are read by a product, which is not done here
  const F* scores;    // (T, N)
  const F* values;    // (N, E)
};

template <typename F>
struct Answer : Routing<F> {
  F* y;        // strengths (T, N) if dense, else outputs (T, E); 0 before
  int* atoms;  // (T, K); null: not kept
  F* norms;    // (T)
};

template <typename F>
struct Gradient : Routing<F> {
  int64_t first, active;  // N - R, R
  const int* atoms;       // (T, K)
  const F* norms;         // (T)
  const F* upstream;      // products with all values (T, N) if dense, else gradients (T, E)
  F* of_scores;           // (T, N)
  F* strengths;           // of active atoms (T, R); 0 before
};

// Numbers at a token's chosen places, which are all places if as many are kept: fetching them from
// places one by one would take half of the time.
INLINED void take(const F* __restrict from, const int* place, int64_t num, int64_t kept,
                  F* __restrict to) {
  if (kept == num)
    std::copy_n(from, kept, to);
  else
    for (int64_t k = 0; k < kept; ++k) to[k] = from[place[k]];
}

INLINED void answer_tokens(const Answer<F>& of, int64_t begin, int64_t end) {
  const int64_t num = of.num, kept = of.kept, width = of.width;
  std::vector<int> room(kept + 1);
  std::vector<F> numbers(4 * kept);
  F *p = numbers.data(), *r = p + kept, *w = r + kept, *m = w + kept;
  int* place = room.data();
  for (int64_t t = begin; t < end; ++t) {
    const F* row = of.scores + t * num;
    F* y = of.y + t * (of.dense ? num : width);
    row::best(row, num, kept, place);
    take(row, place, num, kept, p);
    const F norm = row::norm_of(static_cast<F>(row::sum_of_squares(row, num)));
    row::weigh(p, norm, of.tau, of.threshold, kept, r, w, m);
    for (int64_t k = 0; k < kept; ++k) p[k] *= m[k];
    if (of.dense && kept == num)
      std::copy_n(p, kept, y);
    else if (of.dense)
      for (int64_t k = 0; k < kept; ++k) y[place[k]] = p[k];
    else
      for (int64_t k = 0; k < kept; ++k) row::add_scaled(of.values + place[k] * width, p[k], width, y);
    if (!of.atoms) continue;
    std::copy_n(place, kept, of.atoms + t * kept);
    of.norms[t] = norm;
  }
}

INLINED void gradient_tokens(const Gradient<F>& of, int64_t begin, int64_t end) {
  const int64_t num = of.num, kept = of.kept, width = of.width, first = of.first;
  std::vector<F> numbers(6 * kept);
  F *p = numbers.data(), *u = p + kept, *r = u + kept, *w = r + kept, *m = w + kept, *d = m + kept;
  for (int64_t t = begin; t < end; ++t) {
    const int* place = of.atoms + t * kept;
    const F* score = of.scores + t * num;
    take(score, place, num, kept, p);
    if (of.dense)
      take(of.upstream + t * num, place, num, kept, u);
    else
      for (int64_t k = 0; k < kept; ++k)
        u[k] = row::dot(of.upstream + t * width, of.values + place[k] * width, width);
    row::weigh(p, of.norms[t], of.tau, of.threshold, kept, r, w, m);
    F a, b;
    row::sums(p, r, m, u, kept, a, b);
    const F factor = row::gradient(p, of.norms[t], r, w, m, u, a, b, of.tau, kept, d);
    for (int64_t k = 0; k < kept; ++k) m[k] *= p[k];
    F *__restrict out = of.of_scores + t * num, *strength = of.strengths + t * of.active;
    for (int64_t i = 0; i < num; ++i) out[i] = score[i] * factor;
    if (kept == num) {
      for (int64_t k = 0; k < kept; ++k) out[k] += d[k];
      std::copy_n(m + first, of.active, strength);
    } else {
      for (int64_t k = 0; k < kept; ++k) out[place[k]] += d[k];
      for (int64_t k = kept; k > 0 && place[k - 1] >= first; --k)  // ascending: active ones come last
        strength[place[k - 1] - first] = m[k - 1];
    }
  }
}

#define TOKENS(F)                                                                       \
  FOR_WIDE_VECTORS void work(const Answer<F>& of, int64_t begin, int64_t end) {         \
    answer_tokens(of, begin, end);                                                      \
  }                                                                                     \
  FOR_WIDE_VECTORS void work(const Gradient<F>& of, int64_t begin, int64_t end) {       \
    gradient_tokens(of, begin, end);                                                    \
  }
TOKENS(float)
TOKENS(double)

// A linear's outputs (T, E) from its scores (T, N). All values are mixed by a product if there are at
// most `mix_all` per chosen one. Keeps the chosen atoms (T, K) and the norms (T, 1) if they are given.
Tensor answer(const Tensor& scores, const Tensor& rows, int64_t kept, double tau, double threshold,
              int64_t mix_all, const Tensor& index, const Tensor& norms) {
  const int64_t tokens = scores.size(0), num = scores.size(1), width = rows.size(1);
  const Tensor values = rows.contiguous();
  const bool dense = num <= mix_all * kept;
  Tensor y = at::zeros({tokens, dense ? num : width}, scores.options());
  AT_DISPATCH_FLOATING_TYPES(scores.scalar_type(), "answer", [&] {
    Answer<scalar_t> of;
    of.num = num, of.kept = kept, of.width = width, of.dense = dense;
    of.tau = tau, of.threshold = threshold;
    of.scores = scores.const_data_ptr<scalar_t>(), of.values = values.const_data_ptr<scalar_t>();
    of.y = y.mutable_data_ptr<scalar_t>();
    of.atoms = index.defined() ? index.mutable_data_ptr<int>() : nullptr;
    of.norms = norms.defined() ? norms.mutable_data_ptr<scalar_t>() : nullptr;
    at::parallel_for(0, tokens, rows_at_once(num),
                     [&](int64_t begin, int64_t end) { work(of, begin, end); });
  });
  return dense ? at::mm(y, values) : y;
}

std::vector<Tensor> answers(const Tensor& x, at::TensorList keys, at::TensorList values,
                            int64_t num_atoms, int64_t num_kept, double tau, double threshold,
                            int64_t mix_all) {
  const int64_t kept = std::min(num_kept, num_atoms);
  const Tensor rows = x.reshape({-1, x.size(-1)});
  auto sizes = x.sizes().vec();
  std::vector<Tensor> out;
  for (size_t l = 0; l < keys.size(); ++l) {
    const Tensor own = at::empty({rows.size(0), num_atoms}, rows.options());
    scores::into(own, rows, keys[l].narrow(0, 0, num_atoms));
    const Tensor y = answer(own, values[l].narrow(0, 0, num_atoms), kept, tau, threshold, mix_all,
                            {}, {});
    sizes.back() = y.size(1);
    out.push_back(y.view(sizes));
  }
  return out;
}

std::tuple<std::vector<Tensor>, Tensor, Tensor, Tensor> recall(at::TensorList x, at::TensorList keys,
                                                               at::TensorList values,
                                                               int64_t num_kept, double tau,
                                                               double threshold, int64_t mix_all) {
  const int64_t linears = x.size(), tokens = x[0].size(0), num = keys[0].size(0);
  const int64_t kept = std::min(num_kept, num);
  Tensor scores = at::empty({linears * tokens, num}, x[0].options());
  Tensor index = at::empty({linears * tokens, kept}, x[0].options().dtype(at::kInt));
  Tensor norms = at::empty({linears * tokens, 1}, x[0].options());
  std::vector<Tensor> out;
  for (int64_t l = 0; l < linears; ++l) {
    const Tensor own = scores.narrow(0, l * tokens, tokens);
    scores::into(own, x[l], keys[l]);
    out.push_back(answer(own, values[l], kept, tau, threshold, mix_all,
                         index.narrow(0, l * tokens, tokens), norms.narrow(0, l * tokens, tokens)));
  }
  return {out, scores, index, norms};
}

// Of inputs, if they are wanted, active keys and active values. Atoms from `first` on are active. All
// values are multiplied with a token's gradient if there are at most `multiply_all` per chosen one.
std::tuple<std::vector<Tensor>, std::vector<Tensor>, std::vector<Tensor>> recall_gradients(
    at::TensorList x, at::TensorList keys, at::TensorList values, at::TensorList upstream,
    const Tensor& scores, const Tensor& index, const Tensor& norms, int64_t first,
    double temperature, double threshold, int64_t multiply_all, bool wants_inputs) {
  const int64_t linears = x.size(), tokens = x[0].size(0), num = keys[0].size(0);
  const int64_t kept = index.size(1), active = num - first;
  const bool dense = num <= multiply_all * kept;
  std::vector<Tensor> of_x, of_keys, of_values;
  for (int64_t l = 0; l < linears; ++l) {
    const Tensor rows = values[l].contiguous();
    const int64_t width = rows.size(1);
    const Tensor g = dense ? upstream[l] : upstream[l].contiguous();
    const Tensor products = dense ? at::mm(g, rows.t()) : Tensor();
    Tensor of_scores = at::empty({tokens, num}, scores.options());
    Tensor strengths = at::zeros({tokens, active}, scores.options());
    AT_DISPATCH_FLOATING_TYPES(scores.scalar_type(), "recall_gradients", [&] {
      Gradient<scalar_t> of;
      of.num = num, of.kept = kept, of.width = width, of.dense = dense;
      of.tau = temperature, of.threshold = threshold, of.first = first, of.active = active;
      of.scores = scores.const_data_ptr<scalar_t>() + l * tokens * num;
      of.norms = norms.const_data_ptr<scalar_t>() + l * tokens;
      of.atoms = index.const_data_ptr<int>() + l * tokens * kept;
      of.values = rows.const_data_ptr<scalar_t>();
      of.upstream = (dense ? products : g).const_data_ptr<scalar_t>();
      of.of_scores = of_scores.mutable_data_ptr<scalar_t>();
      of.strengths = strengths.mutable_data_ptr<scalar_t>();
      at::parallel_for(0, tokens, rows_at_once(num),
                       [&](int64_t begin, int64_t end) { work(of, begin, end); });
    });
    if (wants_inputs) of_x.push_back(at::mm(of_scores, keys[l]));
    of_keys.push_back(at::mm(of_scores.narrow(1, first, active).contiguous().t(), x[l]));
    of_values.push_back(at::mm(strengths.t(), g));
  }
  return {of_x, of_keys, of_values};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(moram, m) {
  m.def("answers(Tensor x, Tensor[] keys, Tensor[] values, int num_atoms, int num_kept,"
        " float temperature, float threshold, int mix_all) -> Tensor[]");
  m.def("recall(Tensor[] x, Tensor[] keys, Tensor[] values, int num_kept, float temperature,"
        " float threshold, int mix_all) -> (Tensor[], Tensor, Tensor, Tensor)");
  m.def("recall_gradients(Tensor[] x, Tensor[] keys, Tensor[] values, Tensor[] upstream,"
        " Tensor scores, Tensor index, Tensor norms, int first, float temperature, float threshold,"
        " int multiply_all, bool wants_inputs) -> (Tensor[], Tensor[], Tensor[])");
}

TORCH_LIBRARY_IMPL(moram, CPU, m) {
  m.impl("answers", answers);
  m.impl("recall", recall);
  m.impl("recall_gradients", recall_gradients);
}
