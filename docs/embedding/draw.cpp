// Draws a picture from token ids with a bundle for CPUs, through OpenVINO. ../embedding.md has the contract.
//
//     draw BUNDLE OUTPUT WIDTH HEIGHT STEPS SEED TOKEN…
//
// It writes OUTPUT.npy, the final latents as `qwen-image run --save-latents` writes them, and OUTPUT.pam, the picture.

#include <openvino/openvino.hpp>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "json.hpp"
#include "noise.hpp"
#include "tables.hpp"

namespace {

constexpr std::size_t oldest_schema = 6, newest_schema = 9;  // of the manifest
constexpr int side_multiple = 32;  // pixels: 16 a latent, and an even number of latents
constexpr int pixels_per_latent = 16;
constexpr int largest_side = 1024;  // pixels: the runtime decodes larger pictures in tiles, this program does not

using Cache = std::map<std::string, ov::Tensor>;  // key_0, value_0, …, each (1, tokens, heads, head_dim)

struct Usage : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct Request {
    std::filesystem::path bundle, output;
    int width, height;
    std::size_t steps;
    std::uint64_t seed;
    std::vector<std::size_t> tokens;

    int rows() const { return height / pixels_per_latent; }
    int columns() const { return width / pixels_per_latent; }
    std::size_t target_tokens() const { return static_cast<std::size_t>(rows()) * static_cast<std::size_t>(columns()); }
};

class Bundle {
public:
    explicit Bundle(std::filesystem::path folder)
        : folder_(std::move(folder)), manifest_(Json::read(folder_ / "manifest.json")) {
        if (const auto* format = manifest_.find("format"); !format || format->text() != "qwen-image-bundle")
            throw std::runtime_error(folder_.string() + ": is no bundle");
        if (const std::size_t schema = manifest_.at("schema").size(); schema < oldest_schema || schema > newest_schema)
            throw std::runtime_error(folder_.string() + ": is of schema " + std::to_string(schema) + ", expected " +
                                     std::to_string(oldest_schema) + " to " + std::to_string(newest_schema));
        if (manifest_.at("target").text() != "cpu" || manifest_.at("precision").text() != "fp32")
            throw std::runtime_error(folder_.string() + ": is not of target cpu in fp32; export one that is");
        if (facts().at("bidirectional").is_true())
            throw std::runtime_error(folder_.string() + ": has bidirectional attention, which is not drawn here");
    }

    const Json& facts() const { return manifest_.at("facts"); }
    const Json& embeddings() const { return manifest_.at("embeddings"); }
    std::size_t channels() const { return facts().at("channels").size(); }
    std::size_t layers() const { return manifest_.at("dims").at("layers").size(); }
    std::filesystem::path file(const std::string& name) const { return folder_ / std::filesystem::path(name); }

    // Compiles a component, with the settings that the runtime has.
    ov::InferRequest load(const std::string& component) {
        const auto model = core_.read_model(file(manifest_.at("components").at(component).at("model").text()));
        return core_
            .compile_model(model, "CPU", ov::hint::inference_precision(ov::element::f32),
                           ov::hint::dynamic_quantization_group_size(0))
            .create_infer_request();
    }

private:
    std::filesystem::path folder_;
    Json manifest_;
    ov::Core core_;
};

std::vector<std::size_t> sizes(const Json& list) {
    std::vector<std::size_t> found;
    for (const Json& item : list.items()) found.push_back(item.size());
    return found;
}

ov::Tensor tensor(const ov::Shape& shape, const std::vector<float>& values) {
    ov::Tensor made(ov::element::f32, shape);
    if (made.get_size() != values.size()) throw std::logic_error("as many values as the shape says are expected");
    std::memcpy(made.data(), values.data(), made.get_byte_size());
    return made;
}

// Gives a request the tables of `positions`, as its inputs cos and sin, each (tokens, pairs).
void set_rotary(ov::InferRequest& request, const std::vector<tables::Position>& positions,
                const std::vector<tables::Pair>& pairs) {
    const tables::Rotary rotary = tables::rotary(positions, pairs);
    request.set_tensor("cos", tensor({positions.size(), pairs.size()}, rotary.cos));
    request.set_tensor("sin", tensor({positions.size(), pairs.size()}, rotary.sin));
}

// Reads rows of the token embedding table, (1, tokens, hidden). The table itself never enters memory.
ov::Tensor embedding_rows(const Bundle& bundle, const std::vector<std::size_t>& tokens) {
    const Json& table = bundle.embeddings();
    const std::vector<std::size_t> shape = sizes(table.at("shape"));
    const std::size_t vocabulary = shape.at(0), hidden = shape.at(1);
    const std::string& dtype = table.at("dtype").text();
    const std::size_t item_bytes = dtype == "float32" ? 4 : 2;
    std::ifstream file(bundle.file(table.at("file").text()), std::ios::binary);

    ov::Tensor rows(ov::element::f32, {1, tokens.size(), hidden});
    std::vector<char> stored(hidden * item_bytes);
    for (std::size_t i = 0; i < tokens.size(); ++i) {
        if (tokens[i] >= vocabulary)
            throw Usage("token " + std::to_string(tokens[i]) + " is beyond the " + std::to_string(vocabulary) +
                        " rows of the table of token embeddings");
        file.seekg(static_cast<std::streamoff>(table.at("offset").size() + tokens[i] * stored.size()));
        if (!file.read(stored.data(), static_cast<std::streamsize>(stored.size())))
            throw std::runtime_error(table.at("file").text() + ": cannot be read to the end of the token embeddings");
        const auto convert = [&](auto stored_as) {
            std::vector<decltype(stored_as)> row(hidden);
            std::memcpy(row.data(), stored.data(), stored.size());
            std::copy(row.begin(), row.end(), rows.data<float>() + i * hidden);
        };
        if (dtype == "bfloat16") convert(ov::bfloat16());
        else if (dtype == "float16") convert(ov::float16());
        else convert(float());
    }
    return rows;
}

// Returns the text encoder's states of the tokens behind the system turn, (1, T, context).
ov::Tensor text_states(Bundle& bundle, const std::vector<std::size_t>& tokens) {
    // The system turn ends where the template's first token, <|im_start|>, comes again.
    const auto user_turn = tokens.empty() ? tokens.end() : std::find(tokens.begin() + 1, tokens.end(), tokens.front());
    if (user_turn == tokens.end()) throw Usage("the tokens hold no second turn, expected the whole template");
    const auto dropped = static_cast<std::size_t>(user_turn - tokens.begin());

    const Json& facts = bundle.facts();
    const auto pairs =
        tables::encoder_pairs(facts.at("encoder_head_dim").size(), facts.at("encoder_rope_theta").number(),
                              sizes(facts.at("encoder_mrope_section")));
    ov::InferRequest encoder = bundle.load("text_encoder");
    const ov::Tensor embeddings = embedding_rows(bundle, tokens);
    encoder.set_tensor("embeddings", embeddings);
    set_rotary(encoder, tables::text_positions(static_cast<int>(tokens.size())), pairs);
    for (std::size_t i = 0; i < facts.at("deepstack").size(); ++i)  // features of reference images: there are none
        encoder.set_tensor("deepstack_" + std::to_string(i),
                           tensor(embeddings.get_shape(), std::vector<float>(embeddings.get_size())));
    encoder.infer();

    const ov::Tensor states = encoder.get_tensor("hidden_states");
    const ov::Shape shape = states.get_shape();
    ov::Tensor kept(ov::element::f32, {1, shape[1] - dropped, shape[2]});
    std::memcpy(kept.data(), states.data<const float>() + dropped * shape[2], kept.get_byte_size());
    return kept;
}

std::vector<tables::Pair> transformer_pairs(const Bundle& bundle) {
    return tables::transformer_pairs(sizes(bundle.facts().at("axes_dims_rope")));
}

// Returns keys and values of the text in every block. They depend on neither size, noise level nor step.
Cache prefix(Bundle& bundle, const ov::Tensor& states) {
    ov::InferRequest request = bundle.load("prefix");
    request.set_tensor("text_states", states);
    set_rotary(request, tables::text_positions(static_cast<int>(states.get_shape()[1])), transformer_pairs(bundle));
    request.infer();
    Cache cache;
    for (std::size_t layer = 0; layer < bundle.layers(); ++layer)
        for (const char* kind : {"key_", "value_"}) {
            const std::string name = kind + std::to_string(layer);
            cache[name] = request.get_tensor(name);
        }
    return cache;
}

tables::Schedule schedule(const Bundle& bundle) {
    const Json config = Json::read(bundle.file("scheduler/scheduler_config.json"));
    const Json index = Json::read(bundle.file("model_index.json"));
    const Json& terminal = config.at("shift_terminal");
    std::vector<double> fixed;
    if (const Json* levels = index.find("sample_sigmas"))
        for (const Json& level : levels->items()) fixed.push_back(level.number());
    return {config.at("use_dynamic_shifting").is_true(),
            config.at("shift").number(),
            config.at("base_shift").number(),
            config.at("max_shift").number(),
            config.at("base_image_seq_len").number(),
            config.at("max_image_seq_len").number(),
            terminal.is_null() ? 0.0 : terminal.number(),
            fixed};
}

// Returns noise as tokens, (tokens, channels). It is drawn as a grid, (channels, rows, columns).
std::vector<float> initial_latents(const Request& request, std::size_t channels) {
    const std::size_t count = request.target_tokens();
    const std::vector<float> grid = noise::draw(channels * count, request.seed);
    std::vector<float> packed(grid.size());
    for (std::size_t channel = 0; channel < channels; ++channel)
        for (std::size_t token = 0; token < count; ++token)
            packed[token * channels + channel] = grid[channel * count + token];
    return packed;
}

// Integrates d latents / d sigma = velocity from noise to picture by Euler's method. Returns (tokens, channels).
std::vector<float> sample(Bundle& bundle, const Request& request, const Cache& cache) {
    const auto sigmas = tables::sigmas(schedule(bundle), request.steps, request.target_tokens());
    const ov::Shape shape{1, request.target_tokens(), bundle.channels()};
    std::vector<float> latents = initial_latents(request, bundle.channels());

    ov::InferRequest step = bundle.load("step");
    const auto text_tokens = static_cast<int>(cache.at("key_0").get_shape()[1]);
    const auto positions = tables::target_positions(request.rows(), request.columns(), text_tokens);
    set_rotary(step, positions, transformer_pairs(bundle));
    for (const auto& [name, values] : cache) step.set_tensor(name, values);  // where prefix left them: no copy
    for (std::size_t i = 0; i < request.steps; ++i) {
        const std::vector<float> features = tables::time_features(sigmas[i]);
        step.set_tensor("latents", tensor(shape, latents));
        step.set_tensor("time_features", tensor({1, features.size()}, features));
        step.infer();
        const float* velocity = step.get_tensor("velocity").data<const float>();
        const float distance = sigmas[i + 1] - sigmas[i];
        for (std::size_t k = 0; k < latents.size(); ++k) {
            latents[k] += distance * velocity[k];
            if (!std::isfinite(latents[k])) throw std::runtime_error("step " + std::to_string(i + 1) + ": not finite");
        }
    }
    return latents;
}

// Returns RGBA bytes, row by row.
std::vector<std::uint8_t> decode(Bundle& bundle, const Request& request, const std::vector<float>& latents) {
    const std::size_t channels = bundle.channels(), count = request.target_tokens();
    ov::Tensor grid(ov::element::f32, {1, channels, static_cast<std::size_t>(request.rows()),
                                       static_cast<std::size_t>(request.columns())});
    for (std::size_t channel = 0; channel < channels; ++channel)
        for (std::size_t token = 0; token < count; ++token)
            grid.data<float>()[channel * count + token] = latents[token * channels + channel];

    ov::InferRequest mid = bundle.load("vae_decoder_mid"), up = bundle.load("vae_decoder_up");
    mid.set_tensor("latents", grid);
    mid.infer();
    up.set_tensor("features", mid.get_tensor("features"));
    up.infer();

    const ov::Tensor image = up.get_tensor("image");  // (1, 4, height, width) in [-1, 1]
    const std::size_t pixels = image.get_size() / 4;
    std::vector<std::uint8_t> rgba(image.get_size());
    for (std::size_t i = 0; i < rgba.size(); ++i) {
        const float value = image.data<const float>()[i % 4 * pixels + i / 4];
        if (!std::isfinite(value)) throw std::runtime_error("vae_decoder_up: the image is not finite");
        const float unit = std::min(std::max(value * 0.5f + 0.5f, 0.0f), 1.0f);
        rgba[i] = static_cast<std::uint8_t>(std::nearbyint(unit * 255.0f));  // half to even
    }
    return rgba;
}

void write(const std::filesystem::path& path, const std::string& header, const void* data, std::size_t bytes) {
    const std::filesystem::path partial = path.string() + ".partial";  // so that a file with its name is whole
    std::ofstream file(partial, std::ios::binary);
    file.write(header.data(), static_cast<std::streamsize>(header.size()));
    file.write(static_cast<const char*>(data), static_cast<std::streamsize>(bytes));
    file.close();
    if (!file) throw std::runtime_error(path.string() + ": cannot be written");
    std::filesystem::rename(partial, path);
}

void write_npy(const std::filesystem::path& path, std::size_t tokens, const std::vector<float>& latents) {
    std::string facts = "{'descr': '<f4', 'fortran_order': False, 'shape': (1, " + std::to_string(tokens) + ", " +
                        std::to_string(latents.size() / tokens) + "), }";
    facts.resize(117, ' ');  // with 10 bytes before them and the end of the line, 128
    facts += '\n';
    const std::string magic{"\x93NUMPY\x01\x00\x76\x00", 10};  // format 1.0, 118 bytes of facts
    write(path, magic + facts, latents.data(), latents.size() * sizeof(float));
}

void write_pam(const std::filesystem::path& path, const Request& request, const std::vector<std::uint8_t>& rgba) {
    const std::string header = "P7\nWIDTH " + std::to_string(request.width) + "\nHEIGHT " +
                               std::to_string(request.height) + "\nDEPTH 4\nMAXVAL 255\nTUPLTYPE RGB_ALPHA\nENDHDR\n";
    write(path, header, rgba.data(), rgba.size());
}

template <typename Number>
Number whole(std::string_view name, std::string_view text, Number least, Number most) {
    Number found{};
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), found);
    if (error != std::errc() || end != text.data() + text.size() || found < least || found > most)
        throw Usage(std::string(name) + " is " + std::string(text) + ", expected a whole number from " +
                    std::to_string(least) + " to " + std::to_string(most));
    return found;
}

int side(std::string_view name, std::string_view text) {
    const int found = whole(name, text, side_multiple, largest_side);
    if (found % side_multiple != 0)
        throw Usage(std::string(name) + " is " + std::string(text) + ", expected a multiple of " +
                    std::to_string(side_multiple));
    return found;
}

Request parse(const std::vector<std::string>& words) {
    if (words.size() < 7) throw Usage("expected BUNDLE OUTPUT WIDTH HEIGHT STEPS SEED TOKEN...");
    Request request{words[0],
                    words[1],
                    side("WIDTH", words[2]),
                    side("HEIGHT", words[3]),
                    whole<std::size_t>("STEPS", words[4], 1, 1000),
                    whole<std::uint64_t>("SEED", words[5], 0, UINT64_MAX),
                    {}};
    for (std::size_t i = 6; i < words.size(); ++i)
        request.tokens.push_back(whole<std::size_t>("TOKEN", words[i], 0, INT32_MAX));
    return request;
}

void draw(const Request& request) {
    Bundle bundle(request.bundle);
    const ov::Tensor states = text_states(bundle, request.tokens);
    const Cache cache = prefix(bundle, states);
    const std::vector<float> latents = sample(bundle, request, cache);
    const std::vector<std::uint8_t> rgba = decode(bundle, request, latents);
    write_npy(request.output.string() + ".npy", request.target_tokens(), latents);
    write_pam(request.output.string() + ".pam", request, rgba);
}

}  // namespace

int main(int argc, char** argv) {
    try {
        draw(parse({argv + 1, argv + argc}));
        return 0;
    } catch (const Usage& error) {
        std::cerr << "draw: " << error.what() << '\n';
        return 2;
    } catch (const std::exception& error) {
        std::cerr << "draw: " << error.what() << '\n';
        return 1;
    }
}
