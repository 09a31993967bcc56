#include "loss.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "team.h"

namespace autotune {
namespace {

constexpr int64_t kBlock = 256;  // some microseconds of logarithms, as long as a fork

double at_least_minus_100(double v) { return v < -100.0 ? -100.0 : v; }

// A label of 0 or 1 needs one logarithm.
double entropy(double p, double y) {
  double sum = 0;
  if (y != 0) sum += y * at_least_minus_100(std::log(p));
  if (y != 1) sum += (1 - y) * at_least_minus_100(std::log1p(-p));
  return sum;
}

}  // namespace

double binary_cross_entropy(const Clicks& clicks, float scale, float* d_logits, int64_t d_stride, int threads) {
  const int64_t blocks = (clicks.samples + kBlock - 1) / kBlock;
  const float samples = static_cast<float>(clicks.samples);
  std::vector<double> sums(static_cast<size_t>(blocks));
  const int team = static_cast<int>(std::min<int64_t>(threads, blocks));
  const TeamClock clock(team);
#pragma omp parallel for num_threads(team) if (team > 1) schedule(static)
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t end = std::min(clicks.samples, (block + 1) * kBlock);
    double sum = 0;
    for (int64_t n = block * kBlock; n < end; ++n) {
      const float p = clicks.probabilities[n * clicks.stride], y = clicks.labels[n];
      d_logits[n * d_stride] = (p - y) / samples * scale;
      sum += entropy(p, y);
    }
    sums[static_cast<size_t>(block)] = sum;
  }
  double sum = 0;
  for (const double part : sums) sum += part;
  return -sum / static_cast<double>(clicks.samples) * scale;
}

}  // namespace autotune
