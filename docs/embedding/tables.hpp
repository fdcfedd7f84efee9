// Inputs that the host computes: rotary tables, time features and noise levels.
//
// An angle reaches thousands of radians, where the last bit of a float32 frequency moves a cosine by 1e-4. So each
// operation rounds to float32 where the model's does, and only cosine, sine and powers are computed in float64.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <stdexcept>
#include <string>
#include <vector>

namespace tables {

using Position = std::array<int, 3>;  // frame or time, row, column

struct Pair {  // two channels of a head that turn together: which coordinate turns them, and how fast
    std::size_t axis;
    float frequency;
};

struct Rotary {  // (tokens, pairs), row-major
    std::vector<float> cos, sin;
};

// theta^(-2i/channels) for i = 0 .. channels/2 - 1.
inline std::vector<float> inverse_frequencies(std::size_t channels, double theta) {
    std::vector<float> found;
    for (std::size_t i = 0; i < channels; i += 2) {
        const float exponent = static_cast<float>(i) / static_cast<float>(channels);
        found.push_back(1.0f / static_cast<float>(std::pow(theta, static_cast<double>(exponent))));
    }
    return found;
}

// The transformer's pairs, neighbouring channels: `channels[axis]` channels of a head for each axis, in order.
inline std::vector<Pair> transformer_pairs(const std::vector<std::size_t>& channels) {
    std::vector<Pair> pairs;
    for (std::size_t axis = 0; axis < channels.size(); ++axis)
        for (const float frequency : inverse_frequencies(channels[axis], 10000.0)) pairs.push_back({axis, frequency});
    return pairs;
}

// The text encoder's pairs (i, i + head_dim/2): `section` has the number of pairs of each axis, interleaved from 1 on.
inline std::vector<Pair> encoder_pairs(std::size_t head_dim, double theta, const std::vector<std::size_t>& section) {
    std::vector<Pair> pairs;
    for (const float frequency : inverse_frequencies(head_dim, theta)) pairs.push_back({0, frequency});
    for (std::size_t axis = 1; axis < section.size(); ++axis)
        for (std::size_t i = axis; i < 3 * section[axis]; i += 3) pairs.at(i).axis = axis;
    return pairs;
}

inline Rotary rotary(const std::vector<Position>& positions, const std::vector<Pair>& pairs) {
    Rotary found;
    for (const Position& position : positions)
        for (const auto& [axis, frequency] : pairs) {
            const float angle = static_cast<float>(position.at(axis)) * frequency;
            found.cos.push_back(static_cast<float>(std::cos(static_cast<double>(angle))));
            found.sin.push_back(static_cast<float>(std::sin(static_cast<double>(angle))));
        }
    return found;
}

// Text token i stands at i on every axis.
inline std::vector<Position> text_positions(int length) {
    std::vector<Position> found;
    for (int i = 0; i < length; ++i) found.push_back({i, i, i});
    return found;
}

// The target stands behind `start` tokens of text, its rows and columns centred on zero, in raster order.
inline std::vector<Position> target_positions(int rows, int columns, int start) {
    std::vector<Position> found;
    for (int row = 0; row < rows; ++row)
        for (int column = 0; column < columns; ++column)
            found.push_back({start, row - (rows - rows / 2), column - (columns - columns / 2)});
    return found;
}

// 128 cosines, then 128 sines, of 1000 * sigma * exp(-ln(10000) * i/128).
inline std::vector<float> time_features(float sigma) {
    constexpr std::size_t half = 128;
    std::vector<float> found(2 * half);
    for (std::size_t i = 0; i < half; ++i) {
        const float exponent = static_cast<float>(-std::log(10000.0)) * static_cast<float>(i) / 128.0f;
        const float frequency = static_cast<float>(std::exp(static_cast<double>(exponent)));
        const float angle = sigma * 1000.0f * frequency;
        found[i] = static_cast<float>(std::cos(static_cast<double>(angle)));
        found[half + i] = static_cast<float>(std::sin(static_cast<double>(angle)));
    }
    return found;
}

struct Schedule {  // of scheduler/scheduler_config.json and model_index.json
    bool dynamic;
    double shift, base_shift, max_shift, base_tokens, max_tokens;
    double terminal;  // 0 for none
    std::vector<double> fixed;  // the checkpoint's own levels; empty for an even grid
};

// Noise levels from 1 down to 0, one more than steps.
inline std::vector<float> sigmas(const Schedule& schedule, std::size_t steps, std::size_t target_tokens) {
    if (!schedule.fixed.empty() && steps != schedule.fixed.size())
        throw std::invalid_argument("this checkpoint takes " + std::to_string(schedule.fixed.size()) + " steps");
    if (steps < (schedule.terminal != 0 ? 2u : 1u)) throw std::invalid_argument("too few steps for this schedule");
    std::vector<float> grid;
    for (const double level : schedule.fixed) grid.push_back(static_cast<float>(level));
    const double last = 1.0 / static_cast<double>(steps);
    const double distance = (last - 1.0) / std::max(static_cast<double>(steps) - 1.0, 1.0);
    while (grid.size() < steps) grid.push_back(static_cast<float>(static_cast<double>(grid.size()) * distance + 1.0));
    if (schedule.fixed.empty() && steps > 1) grid.back() = static_cast<float>(last);

    const double slope = (schedule.max_shift - schedule.base_shift) / (schedule.max_tokens - schedule.base_tokens);
    const double mu = static_cast<double>(target_tokens) * slope + (schedule.base_shift - slope * schedule.base_tokens);
    const float growth = static_cast<float>(std::exp(mu));
    const float shift = static_cast<float>(schedule.shift), less = static_cast<float>(schedule.shift - 1.0);
    for (float& s : grid)
        s = schedule.dynamic ? growth / (growth + (1.0f / s - 1.0f)) : shift * s / (1.0f + less * s);

    if (schedule.terminal != 0) {
        const float stretch = (1.0f - grid.back()) / static_cast<float>(1.0 - schedule.terminal);
        for (float& s : grid) s = 1.0f - (1.0f - s) / stretch;
    }
    grid.push_back(0.0f);
    return grid;
}

}  // namespace tables
