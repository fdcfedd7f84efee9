// The noise of a seed: torch.randn of a CPU generator in float32, as the runtime draws it.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace noise {

constexpr std::size_t block = 16;

// Fills 16 values from 16 words of the stream: 8 radii, then 8 angles, become 8 cosines, then 8 sines.
inline void fill_block(std::mt19937& stream, float* values) {
    float uniform[block];
    for (float& u : uniform) u = static_cast<float>(stream() & 0xFFFFFFu) * 0x1p-24f;  // in [0, 1)
    constexpr float two_pi = 6.283185307179586f;
    for (std::size_t i = 0; i < block / 2; ++i) {
        const double radius = std::sqrt(-2.0 * std::log(static_cast<double>(1.0f - uniform[i])));
        const double angle = static_cast<double>(two_pi * uniform[i + block / 2]);  // a float32, as in torch
        values[i] = static_cast<float>(radius * std::cos(angle));
        values[i + block / 2] = static_cast<float>(radius * std::sin(angle));
    }
}

// Draws `count` values from the low 32 bits of a seed. With four channels, or eight, …, `count` is a multiple of 16.
inline std::vector<float> draw(std::size_t count, std::uint64_t seed) {
    if (count % block != 0)
        throw std::invalid_argument(std::to_string(count) + " values of noise, expected a multiple of 16");
    std::mt19937 stream(static_cast<std::uint32_t>(seed));
    std::vector<float> values(count);
    for (std::size_t i = 0; i < count; i += block) fill_block(stream, &values[i]);
    return values;
}

}  // namespace noise
