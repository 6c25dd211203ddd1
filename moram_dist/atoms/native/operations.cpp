// The work on chosen atoms on a CPU, each step as one operation. atoms/reference.py has the same
// functions in torch, where each is several operations: with few tokens, calling them is most of
// the cost. The result for a token does not depend on the other tokens.
//
// Letters: T tokens, N scores of a token, K atoms kept per token, L linears, E outputs.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <tuple>

#include "rows.h"
#include "scores.h"

namespace {

using at::Tensor;

#define ROWS(F)                                                                                  \
  FOR_WIDE_VECTORS F route_row(const F* score, int64_t num, int64_t kept, int* place) {          \
    row::best(score, num, kept, place);                                                          \
    return row::sum_of_squares(score, num);                                                      \
  }                                                                                              \
  FOR_WIDE_VECTORS void weigh_row(const F* score, F norm, F tau, F threshold, int64_t kept,      \
                                  F* relevance, F* weight, F* spoken) {                          \
    row::weigh(score, norm, tau, threshold, kept, relevance, weight, spoken);                    \
  }                                                                                              \
  FOR_WIDE_VECTORS void sum_row(const F* score, const F* relevance, const F* spoken, const F* u, \
                                int64_t kept, F* total) {                                        \
    row::sums(score, relevance, spoken, u, kept, total[0], total[1]);                            \
  }                                                                                              \
  FOR_WIDE_VECTORS F gradient_row(const F* score, F norm, const F* relevance, const F* weight,   \
                                  const F* spoken, const F* u, const F* total, F tau,            \
                                  int64_t kept, F* direct) {                                     \
    return row::gradient(score, norm, relevance, weight, spoken, u, total[0], total[1], tau,     \
                         kept, direct);                                                          \
  }                                                                                              \
  FOR_WIDE_VECTORS void add_scaled(const F* value, F strength, int64_t width, F* y) {            \
    row::add_scaled(value, strength, width, y);                                                  \
  }                                                                                              \
  FOR_WIDE_VECTORS F dot(const F* a, const F* b, int64_t width) { return row::dot(a, b, width); }
ROWS(float)
ROWS(double)

std::tuple<Tensor, Tensor, Tensor> route(const Tensor& given, int64_t num_kept, int64_t shard,
                                         int64_t num_shards, int64_t num_atoms) {
  const Tensor score = given.contiguous();
  const int64_t rows = score.size(0), num = score.size(1), kept = std::min(num_kept, num);
  Tensor squares = at::empty({rows, 1}, score.options());
  Tensor found = at::empty({rows, num_kept}, score.options());
  Tensor index = at::empty({rows, num_kept}, score.options().dtype(at::kInt));
  AT_DISPATCH_FLOATING_TYPES(score.scalar_type(), "route", [&] {
    const scalar_t* all = score.const_data_ptr<scalar_t>();
    scalar_t* square = squares.mutable_data_ptr<scalar_t>();
    scalar_t* out = found.mutable_data_ptr<scalar_t>();
    int* atom = index.mutable_data_ptr<int>();
    at::parallel_for(0, rows, rows_at_once(num), [&](int64_t begin, int64_t end) {
      std::vector<int> place(kept + 1);
      for (int64_t t = begin; t < end; ++t) {
        const scalar_t* row = all + t * num;
        square[t] = route_row(row, num, kept, place.data());
        for (int64_t k = 0; k < num_kept; ++k) {
          const bool here = k < kept;
          out[t * num_kept + k] =
              here ? row[place[k]] : -std::numeric_limits<scalar_t>::infinity();
          atom[t * num_kept + k] =
              static_cast<int>(here ? place[k] * num_shards + shard : num_atoms);
        }
      }
    });
  });
  return {squares, found, index};
}

Tensor norms(const Tensor& given) {
  const Tensor squares = given.contiguous();
  Tensor out = at::empty_like(squares);
  AT_DISPATCH_FLOATING_TYPES(squares.scalar_type(), "norms", [&] {
    const scalar_t* s = squares.const_data_ptr<scalar_t>();
    scalar_t* n = out.mutable_data_ptr<scalar_t>();
    for (int64_t t = 0; t < squares.numel(); ++t) n[t] = row::norm_of(s[t]);
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> weigh(const Tensor& given, const Tensor& norms, double tau,
                                         double threshold) {
  const Tensor score = given.contiguous(), norm = norms.contiguous();
  const int64_t rows = score.size(0), kept = score.size(1);
  Tensor relevance = at::empty_like(score), weight = at::empty_like(score);
  Tensor spoken = at::empty_like(score);
  AT_DISPATCH_FLOATING_TYPES(score.scalar_type(), "weigh", [&] {
    const scalar_t *s = score.const_data_ptr<scalar_t>(), *n = norm.const_data_ptr<scalar_t>();
    scalar_t* r = relevance.mutable_data_ptr<scalar_t>();
    scalar_t* w = weight.mutable_data_ptr<scalar_t>();
    scalar_t* m = spoken.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, rows, rows_at_once(kept), [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const int64_t at = t * kept;
        weigh_row(s + at, n[t], tau, threshold, kept, r + at, w + at, m + at);
      }
    });
  });
  return {relevance, weight, spoken};
}

Tensor sums(const Tensor& score, const Tensor& relevance, const Tensor& spoken, const Tensor& u) {
  const Tensor all[] = {score.contiguous(), relevance.contiguous(), spoken.contiguous(),
                        u.contiguous()};
  const int64_t rows = score.size(0), kept = score.size(1);
  Tensor out = at::empty({rows, 2}, score.options());
  AT_DISPATCH_FLOATING_TYPES(score.scalar_type(), "sums", [&] {
    const scalar_t *p = all[0].const_data_ptr<scalar_t>(), *s = all[1].const_data_ptr<scalar_t>();
    const scalar_t *w = all[2].const_data_ptr<scalar_t>(), *v = all[3].const_data_ptr<scalar_t>();
    scalar_t* total = out.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, rows, rows_at_once(kept), [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const int64_t at = t * kept;
        sum_row(p + at, s + at, w + at, v + at, kept, total + 2 * t);
      }
    });
  });
  return out;
}

std::tuple<Tensor, Tensor> score_gradient(const Tensor& score, const Tensor& norms,
                                          const Tensor& relevance, const Tensor& weight,
                                          const Tensor& spoken, const Tensor& u,
                                          const Tensor& totals, double temperature) {
  const Tensor all[] = {score.contiguous(),  norms.contiguous(),  relevance.contiguous(),
                        weight.contiguous(), spoken.contiguous(), u.contiguous(),
                        totals.contiguous()};
  const int64_t rows = score.size(0), kept = score.size(1);
  Tensor direct = at::empty({rows, kept}, score.options());
  Tensor through_norm = at::empty({rows, 1}, score.options());
  AT_DISPATCH_FLOATING_TYPES(score.scalar_type(), "score_gradient", [&] {
    const scalar_t *p = all[0].const_data_ptr<scalar_t>(), *n = all[1].const_data_ptr<scalar_t>();
    const scalar_t *s = all[2].const_data_ptr<scalar_t>(), *w = all[3].const_data_ptr<scalar_t>();
    const scalar_t *m = all[4].const_data_ptr<scalar_t>(), *v = all[5].const_data_ptr<scalar_t>();
    const scalar_t* total = all[6].const_data_ptr<scalar_t>();
    scalar_t* out = direct.mutable_data_ptr<scalar_t>();
    scalar_t* factor = through_norm.mutable_data_ptr<scalar_t>();
    const scalar_t tau = temperature;
    at::parallel_for(0, rows, rows_at_once(kept), [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const int64_t at = t * kept;
        factor[t] = gradient_row(p + at, n[t], s + at, w + at, m + at, v + at, total + 2 * t, tau,
                                 kept, out + at);
      }
    });
  });
  return {direct, through_norm};
}

void add(const Tensor& row, const std::optional<Tensor>& here, const Tensor& number, Tensor to) {
  const Tensor place = row.contiguous(), what = number.contiguous();
  const Tensor valid = here ? here->contiguous() : Tensor();
  const int64_t rows = place.size(0), kept = place.size(1), num = to.size(1);
  TORCH_CHECK(to.is_contiguous(), "numbers are added to a contiguous tensor only");
  AT_DISPATCH_FLOATING_TYPES(to.scalar_type(), "add", [&] {
    AT_DISPATCH_INDEX_TYPES(place.scalar_type(), "add", [&] {
      const index_t* at_ = place.const_data_ptr<index_t>();
      const scalar_t* x = what.const_data_ptr<scalar_t>();
      const bool* ok = valid.defined() ? valid.const_data_ptr<bool>() : nullptr;
      scalar_t* out = to.mutable_data_ptr<scalar_t>();
      at::parallel_for(0, rows, rows_at_once(kept), [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t)
          for (int64_t i = t * kept; i < (t + 1) * kept; ++i)
            if (!ok || ok[i]) out[t * num + at_[i]] += x[i];
      });
    });
  });
}

// The sum of each token's rows, weighted by strength; 0 for rows of other shards.
Tensor mix(const Tensor& row, const std::optional<Tensor>& here, const Tensor& strength,
           const Tensor& matrix) {
  const Tensor place = row.contiguous(), weight = strength.contiguous();
  const Tensor valid = here ? here->contiguous() : Tensor(), from = matrix.contiguous();
  const int64_t rows = place.size(0), kept = place.size(1), width = from.size(1);
  Tensor out = at::zeros({rows, width}, from.options());
  AT_DISPATCH_FLOATING_TYPES(from.scalar_type(), "mix", [&] {
    AT_DISPATCH_INDEX_TYPES(place.scalar_type(), "mix", [&] {
      const index_t* at_ = place.const_data_ptr<index_t>();
      const scalar_t *w = weight.const_data_ptr<scalar_t>(), *v = from.const_data_ptr<scalar_t>();
      const bool* ok = valid.defined() ? valid.const_data_ptr<bool>() : nullptr;
      scalar_t* y = out.mutable_data_ptr<scalar_t>();
      at::parallel_for(0, rows, rows_at_once(kept * width), [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t)
          for (int64_t i = t * kept; i < (t + 1) * kept; ++i)
            if (!ok || ok[i]) add_scaled(v + at_[i] * width, w[i], width, y + t * width);
      });
    });
  });
  return out;
}

// Each token times its rows; 0 for rows of other shards.
Tensor products(const Tensor& tokens, const Tensor& row, const std::optional<Tensor>& here,
                const Tensor& matrix) {
  const Tensor place = row.contiguous(), x = tokens.contiguous(), from = matrix.contiguous();
  const Tensor valid = here ? here->contiguous() : Tensor();
  const int64_t rows = place.size(0), kept = place.size(1), width = from.size(1);
  Tensor out = at::empty({rows, kept}, from.options());
  AT_DISPATCH_FLOATING_TYPES(from.scalar_type(), "products", [&] {
    AT_DISPATCH_INDEX_TYPES(place.scalar_type(), "products", [&] {
      const index_t* at_ = place.const_data_ptr<index_t>();
      const scalar_t *p = x.const_data_ptr<scalar_t>(), *v = from.const_data_ptr<scalar_t>();
      const bool* ok = valid.defined() ? valid.const_data_ptr<bool>() : nullptr;
      scalar_t* y = out.mutable_data_ptr<scalar_t>();
      at::parallel_for(0, rows, rows_at_once(kept * width), [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t)
          for (int64_t i = t * kept; i < (t + 1) * kept; ++i)
            y[i] = !ok || ok[i] ? dot(p + t * width, v + at_[i] * width, width) : 0;
      });
    });
  });
  return out;
}

void score(const Tensor& x, const Tensor& keys, Tensor out) { scores::into(out, x, keys); }

}  // namespace

TORCH_LIBRARY(moram, m) {
  m.def("score(Tensor x, Tensor keys, Tensor(a!) out) -> ()");
  m.def("few_tokens() -> int");
  m.def("route(Tensor score, int num_kept, int shard, int num_shards, int num_atoms)"
        " -> (Tensor, Tensor, Tensor)");
  m.def("norms(Tensor squares) -> Tensor");
  m.def("weigh(Tensor score, Tensor norm, float temperature, float threshold)"
        " -> (Tensor, Tensor, Tensor)");
  m.def("sums(Tensor score, Tensor relevance, Tensor spoken, Tensor u) -> Tensor");
  m.def("score_gradient(Tensor score, Tensor norm, Tensor relevance, Tensor weight, Tensor spoken,"
        " Tensor u, Tensor totals, float temperature) -> (Tensor, Tensor)");
  m.def("add(Tensor row, Tensor? here, Tensor number, Tensor(a!) to) -> ()");
  m.def("mix(Tensor row, Tensor? here, Tensor strength, Tensor rows) -> Tensor");
  m.def("products(Tensor tokens, Tensor row, Tensor? here, Tensor rows) -> Tensor");
}

TORCH_LIBRARY_IMPL(moram, CompositeExplicitAutograd, m) { m.impl("few_tokens", scores::few_tokens); }

TORCH_LIBRARY_IMPL(moram, CPU, m) {
  m.impl("score", score);
  m.impl("route", route);
  m.impl("norms", norms);
  m.impl("weigh", weigh);
  m.impl("sums", sums);
  m.impl("score_gradient", score_gradient);
  m.impl("add", add);
  m.impl("mix", mix);
  m.impl("products", products);
}
