// Checks of the gather operators' arguments. Each message names the argument, what it must be, and
// what came; STD_TORCH_CHECK puts the function before it.
#pragma once

#include "barrier_flags.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <limits>
#include <vector>

namespace crossalign {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Ranks of one group: what one NVLink domain holds, and what fits a kernel's parameters.
constexpr int kMaxRanks = 72;
// A wait in nanoseconds must fit an int64, and nobody waits for a day.
constexpr double kLongestWaitSeconds = 86400;

// Sums run in float, for double in double.
template <typename T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};

inline void check_matrix(const char* name, const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.dim() == 2, name, " must have 2 dimensions, got ", tensor.dim());
  STD_TORCH_CHECK(tensor.is_contiguous(), name, " must be contiguous, got strides ",
                  tensor.stride(0), ", ", tensor.stride(1));
}

inline void check_ranks(const char* name, const std::vector<int64_t>& addresses) {
  const auto ranks = static_cast<int64_t>(addresses.size());
  STD_TORCH_CHECK(ranks >= 1 && ranks <= kMaxRanks, name, " must hold 1 to ", kMaxRanks,
                  " addresses, got ", ranks);
  for (int64_t r = 0; r < ranks; ++r) {
    STD_TORCH_CHECK(addresses[r] != 0, name, "[", r, "] must be an address, got 0");
  }
}

inline void check_status(const Tensor& status) {
  STD_TORCH_CHECK(status.is_cpu() && status.scalar_type() == ScalarType::Int && status.numel() == 1,
                  "status must be one int32 on the CPU (pinned where a GPU writes it), got ",
                  status.numel(), " of ", status.scalar_type());
}

// Where the operators of one device learn that a barrier failed: in that device's own memory.
inline void check_failed(const Tensor& failed, const Tensor& like) {
  STD_TORCH_CHECK(failed.scalar_type() == ScalarType::Int && failed.numel() == 1 &&
                      failed.is_cuda() == like.is_cuda() &&
                      failed.get_device_index() == like.get_device_index(),
                  "failed must be one int32 on the device of the data, index ",
                  like.get_device_index(), ", got ", failed.numel(), " of ", failed.scalar_type(),
                  ", index ", failed.get_device_index());
}

inline void check_publish(const Tensor& rows, const Tensor& published, const Tensor& failed) {
  check_matrix("rows", rows);
  check_matrix("published", published);
  check_failed(failed, rows);
  STD_TORCH_CHECK(rows.size(0) == published.size(0) && rows.size(1) == published.size(1),
                  "published must have the shape of rows (", rows.size(0), ", ", rows.size(1),
                  "), got (", published.size(0), ", ", published.size(1), ")");
  STD_TORCH_CHECK(rows.is_cuda() == published.is_cuda() &&
                      rows.get_device_index() == published.get_device_index(),
                  "published must be on the device of rows, index ", rows.get_device_index(),
                  ", got index ", published.get_device_index());
}

inline void check_pull(const std::vector<int64_t>& peers, const std::vector<int64_t>& peer_rows,
                       const Tensor& gathered, const Tensor& failed) {
  check_ranks("peers", peers);
  check_matrix("gathered", gathered);
  check_failed(failed, gathered);
  STD_TORCH_CHECK(peer_rows.size() == peers.size(), "peer_rows must have one number per peer (",
                  peers.size(), "), got ", peer_rows.size());
  int64_t total = 0;
  for (const int64_t count : peer_rows) {
    STD_TORCH_CHECK(count >= 0, "peer_rows must not be negative, got ", count);
    STD_TORCH_CHECK(count <= std::numeric_limits<int64_t>::max() - total,
                    "peer_rows must have a sum below 2^63, got ", count, " beside ", total);
    total += count;
  }
  STD_TORCH_CHECK(gathered.size(0) == total, "gathered must have ", total,
                  " rows, the sum of peer_rows, got ", gathered.size(0));
}

inline void check_sum(const std::vector<int64_t>& peers, int64_t first_row, const Tensor& total,
                      const Tensor& failed) {
  check_ranks("peers", peers);
  check_matrix("total", total);
  check_failed(failed, total);
  STD_TORCH_CHECK(first_row >= 0, "first_row must not be negative, got ", first_row);
}

inline void check_barrier(const Tensor& buffer, const std::vector<int64_t>& flags, int64_t rank,
                          int64_t number, int64_t exchange, double timeout_s, const Tensor& failed,
                          const Tensor& status) {
  check_ranks("flags", flags);
  check_failed(failed, buffer);
  check_status(status);
  STD_TORCH_CHECK(rank >= 0 && rank < static_cast<int64_t>(flags.size()), "rank must be 0 to ",
                  flags.size() - 1, ", got ", rank);
  STD_TORCH_CHECK(number >= 0 && number < kBarriers, "number must be 0 to ", kBarriers - 1, ", got ",
                  number);
  STD_TORCH_CHECK(exchange >= 0 && exchange < kExchanges, "exchange must be 0 to ", kExchanges - 1,
                  ", got ", exchange);
  STD_TORCH_CHECK(timeout_s > 0 && timeout_s <= kLongestWaitSeconds,
                  "timeout_s must be above 0 and at most ", kLongestWaitSeconds, ", got ", timeout_s);
}

// Calls run(In(), Out()) with the types of a cast: any of three to any of three, or double to
// double.
template <typename Run>
void with_cast_types(ScalarType from, ScalarType to, const Run& run) {
  const auto with_output = [&](auto in) {
    using In = decltype(in);
    switch (to) {
      case ScalarType::Float: return run(In(), float());
      case ScalarType::BFloat16: return run(In(), BFloat16());
      case ScalarType::Half: return run(In(), Half());
      default: STD_TORCH_CHECK(false, "cannot write ", from, " rows as ", to);
    }
  };
  switch (from) {
    case ScalarType::Float: return with_output(float());
    case ScalarType::BFloat16: return with_output(BFloat16());
    case ScalarType::Half: return with_output(Half());
    case ScalarType::Double:
      STD_TORCH_CHECK(to == ScalarType::Double, "float64 rows must stay float64, got ", to);
      return run(double(), double());
    default: STD_TORCH_CHECK(false, "rows must be floating point, got ", from);
  }
}

// Calls run(In(), Out()) with the types of a sum: Out is In or its accumulator.
template <typename Run>
void with_sum_types(ScalarType from, ScalarType to, const Run& run) {
  const bool widen = to == ScalarType::Float;
  STD_TORCH_CHECK(to == from || (widen && from != ScalarType::Double), "total must be ", from,
                  " or its accumulator, got ", to);
  switch (from) {
    case ScalarType::Float: return run(float(), float());
    case ScalarType::Double: return run(double(), double());
    case ScalarType::BFloat16:
      return widen ? run(BFloat16(), float()) : run(BFloat16(), BFloat16());
    case ScalarType::Half: return widen ? run(Half(), float()) : run(Half(), Half());
    default: STD_TORCH_CHECK(false, "peer_dtype must be floating point, got ", from);
  }
}

}  // namespace crossalign
