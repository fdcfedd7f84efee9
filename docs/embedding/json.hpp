// JSON, as far as a bundle's files need it: values by key or index, numbers and texts. It checks form, not meaning.
#pragma once

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

class Json {
public:
    static Json read(const std::filesystem::path& path) {
        std::ifstream file(path, std::ios::binary);
        if (!file) throw std::runtime_error(path.string() + ": cannot be read");
        const std::string text{std::istreambuf_iterator<char>(file), {}};
        Parser parser{text, path.string()};
        Json found = parser.value(0);
        if (parser.next() != '\0') parser.fail();
        return found;
    }

    const Json* find(std::string_view key) const {
        for (std::size_t i = 0; i < keys_.size(); ++i)
            if (keys_[i] == key) return &items_[i];
        return nullptr;
    }
    const Json& at(std::string_view key) const {
        if (const Json* found = find(key)) return *found;
        throw std::runtime_error("no \"" + std::string(key) + "\" where one is expected");
    }
    const std::vector<Json>& items() const { return items_; }
    bool is_null() const { return kind_ == Kind::word && text_ == "null"; }
    bool is_true() const { return kind_ == Kind::word && text_ == "true"; }
    const std::string& text() const { return of(Kind::text).text_; }
    double number() const { return std::strtod(of(Kind::number).text_.c_str(), nullptr); }
    std::size_t size() const {
        const double found = number();
        if (!(found >= 0 && found < 0x1p53)) throw std::runtime_error(text_ + " where a count is expected");
        return static_cast<std::size_t>(found);
    }

private:
    enum class Kind { object, array, text, number, word };

    struct Parser {
        std::string_view rest;
        std::string name;

        [[noreturn]] void fail() const { throw std::runtime_error(name + ": is not JSON"); }

        char next() {  // the next character that is no white space; 0 at the end
            while (!rest.empty() && std::isspace(static_cast<unsigned char>(rest.front()))) rest.remove_prefix(1);
            return rest.empty() ? '\0' : rest.front();
        }
        bool take(char wanted) {
            if (next() != wanted) return false;
            rest.remove_prefix(1);
            return true;
        }
        Json value(int depth) {
            if (depth > 64) fail();
            Json found;
            const char first = next();
            if (first == '{' || first == '[') {
                found.kind_ = first == '{' ? Kind::object : Kind::array;
                rest.remove_prefix(1);
                const char last = first == '{' ? '}' : ']';
                while (!take(last)) {
                    if (!found.items_.empty() && !take(',')) fail();
                    if (first == '{') {
                        found.keys_.push_back(string());
                        if (!take(':')) fail();
                    }
                    found.items_.push_back(value(depth + 1));
                }
            } else if (first == '"') {
                found.kind_ = Kind::text;
                found.text_ = string();
            } else {
                const std::size_t length = std::min(rest.find_first_of(",]} \t\r\n"), rest.size());
                found.text_ = rest.substr(0, length);
                rest.remove_prefix(length);
                const bool is_word = found.text_ == "null" || found.text_ == "true" || found.text_ == "false";
                char* end = nullptr;
                std::strtod(found.text_.c_str(), &end);
                if (!is_word && (length == 0 || *end != '\0')) fail();
                found.kind_ = is_word ? Kind::word : Kind::number;
            }
            return found;
        }
        std::string string() {  // an escape is kept as it is written: no name that is read here has one
            if (!take('"')) fail();
            std::size_t end = 0;
            while (end < rest.size() && rest[end] != '"') end += rest[end] == '\\' ? 2 : 1;
            if (end >= rest.size()) fail();
            std::string found(rest.substr(0, end));
            rest.remove_prefix(end + 1);
            return found;
        }
    };

    const Json& of(Kind kind) const {
        if (kind_ != kind) throw std::runtime_error("a value of another kind where a text or a number is expected");
        return *this;
    }

    Kind kind_ = Kind::word;
    std::string text_;  // of a text, a number or a word
    std::vector<std::string> keys_;  // of an object, in the order of its values
    std::vector<Json> items_;
};
