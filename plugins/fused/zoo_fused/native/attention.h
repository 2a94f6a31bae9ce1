// Attention of the tokens of a chunk over zoo's cache: rotary positions, writing keys and values, scores, means of the values.
#pragma once

namespace {

enum { QUERIES = 4, MOST_QUERIES = 64 };  // that share what is read of a key; that one unit of work has

// Keys of LANES slots, one vector for each feature of a head: scores of LANES slots then come without sums across lanes.
inline void transposed(const float* keys, int64_t slots, int64_t width, float* to) {
    if (slots == LANES && width % LANES == 0) {
        for (int64_t k = 0; k < width; k += LANES) {
            Vec row[LANES];
            for (int i = 0; i < LANES; ++i) row[i] = load(keys + i * width + k);
            // Blocks of half the size change places, until they are single numbers.
#pragma GCC unroll 8
            for (int step = LANES / 2; step > 0; step /= 2) {
                IntVec low, high;
                for (int i = 0; i < LANES; ++i) {
                    low[i] = i & step ? LANES + (i ^ step) : i;
                    high[i] = i & step ? LANES + i : i ^ step;
                }
#pragma GCC unroll 16
                for (int i = 0; i < LANES; ++i) {
                    if (i & step) continue;
                    const Vec a = row[i], b = row[i + step];
                    row[i] = __builtin_shuffle(a, b, low);
                    row[i + step] = __builtin_shuffle(a, b, high);
                }
            }
            for (int i = 0; i < LANES; ++i) ::memcpy(to + (k + i) * LANES, &row[i], sizeof(Vec));
        }
        return;
    }
    for (int64_t k = 0; k < width; ++k)
        for (int64_t i = 0; i < LANES; ++i) to[k * LANES + i] = i < slots ? keys[i * width + k] : 0.0f;
}

// Scores of Q queries for V vectors of slots. Queries [width][QUERIES] and keys [V][width][LANES] lie as they are read here: with
// a pointer for each query the compiler runs out of registers.
template <int Q, int V>
inline void scores_of(const float* queries, const float* keys, int64_t width, float* to, int64_t stride) {
    Vec sums[Q][V] = {};
    for (int64_t k = 0; k < width; ++k) {
        Vec key[V];
        for (int v = 0; v < V; ++v) key[v] = load(keys + (v * width + k) * LANES);
        for (int q = 0; q < Q; ++q)
            for (int v = 0; v < V; ++v) sums[q][v] += key[v] * queries[k * QUERIES + q];
    }
    for (int q = 0; q < Q; ++q)
        for (int v = 0; v < V; ++v) store(to + q * stride + v * LANES, sums[q][v]);
}

template <int V>
inline void scores_of_some(int count, const float* queries, const float* keys, int64_t width, float* to, int64_t stride) {
    switch (count) {
        case 1: return scores_of<1, V>(queries, keys, width, to, stride);
        case 2: return scores_of<2, V>(queries, keys, width, to, stride);
        case 3: return scores_of<3, V>(queries, keys, width, to, stride);
        default: return scores_of<4, V>(queries, keys, width, to, stride);
    }
}

// Features `k` on of the means: WIDE vectors of them, or one that is `left` features short of a whole one.
template <int Q, int WIDE>
inline void means_at(const float* const* scores, const float* factors, const float* values, int64_t slots, int64_t width, int64_t k,
                     float* const* to) {
    const int64_t left = width - k < WIDE * LANES ? width - k : int64_t(WIDE * LANES);
    Vec sums[Q][WIDE] = {};
    for (int64_t slot = 0; slot < slots; ++slot) {
        Vec value[WIDE] = {};
        if (WIDE == 1 && left < LANES)
            memcpy(value, values + slot * width + k, size_t(left) * sizeof(float));
        else
            for (int i = 0; i < WIDE; ++i) value[i] = load(values + slot * width + k + i * LANES);
        for (int q = 0; q < Q; ++q)
            for (int i = 0; i < WIDE; ++i) sums[q][i] += value[i] * scores[q][slot];
    }
    for (int q = 0; q < Q; ++q) {
        for (int i = 0; i < WIDE; ++i) sums[q][i] *= factors[q];
        memcpy(to[q] + k, sums[q], size_t(left) * sizeof(float));
    }
}

// Means of the values of `slots` slots, weighed by Q rows of scores times a factor of each row.
template <int Q>
inline void means_of(const float* const* scores, const float* factors, const float* values, int64_t slots, int64_t width,
                     float* const* to) {
    enum { WIDE = LANES == 16 ? 4 : 2 };
    int64_t k = 0;
    for (; k + WIDE * LANES <= width; k += WIDE * LANES) means_at<Q, WIDE>(scores, factors, values, slots, width, k, to);
    for (; k < width; k += LANES) means_at<Q, 1>(scores, factors, values, slots, width, k, to);
}

// Scores of one query -> weights, and the factor with which they sum to 1. Slots behind the query's own are not seen, nor those of padding but its own:
// a row of padding that saw nothing would be NaN.
inline float softmax(float* scores, int64_t slots, int64_t own, const uint8_t* valid) {
    const int64_t padded = (slots + LANES - 1) / LANES * LANES;
    for (int64_t slot = own + 1; slot < padded; ++slot) scores[slot] = -INFINITY;
    if (valid != nullptr)
        for (int64_t slot = 0; slot < own; ++slot)
            if (!valid[slot]) scores[slot] = -INFINITY;
    Vec most = all(-INFINITY);
    for (int64_t slot = 0; slot < padded; slot += LANES) most = greater(load(scores + slot), most);
    const float top = greatest_of(most);
    Vec total{};
    for (int64_t slot = 0; slot < padded; slot += LANES) {
        const Vec weight = exponential(load(scores + slot) - top);
        store(scores + slot, weight);
        total += weight;
    }
    return 1.0f / sum_of(total);
}

inline void turn(float* head, const float* cosine, const float* sine, int64_t width) {
    const int64_t half = width / 2;
    for (int64_t i = 0; i < half; ++i) {
        const float a = head[i], b = head[i + half];
        head[i] = a * cosine[i] + b * sine[i];
        head[i + half] = b * cosine[i + half] + a * sine[i + half];
    }
}

// What the attention of one layer works on, for tokens `first`.. of some rows.
struct Attending {
    const Model* model;
    const Reading* reading;
    int64_t layer, first_row, first, count;  // row of the batch, tokens of each row
    float *joined, *mixed;                         // [rows * count, query + key + value], [rows * count, query]
    float *keys, *queries, *scores;                // memory of this worker: [2][width][LANES], [fours][width][QUERIES], [query][slot]

    int64_t joined_width() const { return (model->heads + 2 * model->kv_heads) * model->head_width; }
    int64_t most_queries() const { return model->heads / model->kv_heads; }

    // Tokens that one unit of work takes together.
    int64_t together() const {
        const int64_t tokens = MOST_QUERIES / most_queries();
        return tokens < 1 ? 1 : tokens;
    }
    int64_t blocks() const { return (count + together() - 1) / together(); }

    const float* slots_of(int pair, int64_t row, int64_t head) const {
        return reading->store + layer * reading->stride_layer + pair * reading->stride_pair +
               (first_row + row) * reading->stride_batch + head * reading->stride_head;
    }

    // Positions of one key/value head and its queries in one row; keys and values go into the cache.
    void place(int64_t row, int64_t head) const {
        const int64_t width = model->head_width, queries = most_queries();
        for (int64_t t = 0; t < count; ++t) {
            float* token = joined + (row * count + t) * joined_width();
            float* query = token + head * queries * width;
            float* key = token + (model->heads + head) * width;
            const float* value = key + model->kv_heads * width;
            if (model->cosine != nullptr) {
                const int64_t position = reading->positions[(first_row + row) * reading->count + first + t];
                const float *cosine = model->cosine + position * width, *sine = model->sine + position * width;
                for (int64_t q = 0; q < queries; ++q) turn(query + q * width, cosine, sine, width);
                turn(key, cosine, sine, width);
            }
            for (int64_t i = 0; i < queries * width; ++i) query[i] *= model->scale;
            const int64_t slot = reading->start + first + t;
            memcpy(const_cast<float*>(slots_of(0, row, head)) + slot * width, key, size_t(width) * sizeof(float));
            memcpy(const_cast<float*>(slots_of(1, row, head)) + slot * width, value, size_t(width) * sizeof(float));
        }
    }

    template <typename Each>
    static void in_fours(int64_t queries, const Each& each) {
        for (int64_t q = 0; q < queries; q += QUERIES) each(q, queries - q < QUERIES ? int(queries - q) : int(QUERIES));
    }

    // One block of tokens of one key/value head in one row.
    void mix(int64_t row, int64_t head, int64_t block) const {
        const int64_t width = model->head_width, heads_to_key = most_queries();
        const int64_t t0 = block * together(), t1 = t0 + together() < count ? t0 + together() : count;
        const int64_t slots = reading->start + first + t1, padded = (slots + LANES - 1) / LANES * LANES;
        const float* weights[MOST_QUERIES + QUERIES];
        float *out[MOST_QUERIES + QUERIES], factors[MOST_QUERIES + QUERIES];
        const int64_t in_turn = heads_to_key < MOST_QUERIES ? heads_to_key : int64_t(MOST_QUERIES);
        for (int64_t base = 0; base < heads_to_key; base += in_turn) {  // more than one turn only for very many queries to a key
            const int64_t here = heads_to_key - base < in_turn ? heads_to_key - base : in_turn;
            int64_t total = 0;
            for (int64_t t = t0; t < t1; ++t)
                for (int64_t q = 0; q < here; ++q, ++total) {
                    const int64_t at = row * count + t, index = head * heads_to_key + base + q;
                    const float* from = joined + at * joined_width() + index * width;
                    float* to = queries + total / QUERIES * QUERIES * width + total % QUERIES;
                    for (int64_t k = 0; k < width; ++k) to[k * QUERIES] = from[k];
                    out[total] = mixed + at * model->heads * width + index * width;
                    weights[total] = scores + total * padded;
                }
            const float *keys_of = slots_of(0, row, head), *values = slots_of(1, row, head);
            for (int64_t slot = 0; slot < slots;) {
                const int vectors = slots - slot > LANES ? 2 : 1;
                for (int v = 0; v < vectors; ++v) {
                    const int64_t from = slot + v * LANES, some = slots - from < LANES ? slots - from : int64_t(LANES);
                    transposed(keys_of + from * width, some, width, keys + v * width * LANES);
                }
                in_fours(total, [&](int64_t q, int some) {
                    float* to = scores + q * padded + slot;
                    if (vectors == 2)
                        scores_of_some<2>(some, queries + q * width, keys, width, to, padded);
                    else
                        scores_of_some<1>(some, queries + q * width, keys, width, to, padded);
                });
                slot += vectors * LANES;
            }
            const uint8_t* valid =
                reading->valid == nullptr ? nullptr : reading->valid + (first_row + row) * reading->valid_stride;
            for (int64_t i = 0; i < total; ++i)
                factors[i] = softmax(scores + i * padded, slots, reading->start + first + t0 + i / here, valid);
            in_fours(total, [&](int64_t q, int some) {
                switch (some) {
                    case 1: return means_of<1>(weights + q, factors + q, values, slots, width, out + q);
                    case 2: return means_of<2>(weights + q, factors + q, values, slots, width, out + q);
                    case 3: return means_of<3>(weights + q, factors + q, values, slots, width, out + q);
                    default: return means_of<4>(weights + q, factors + q, values, slots, width, out + q);
                }
            });
        }
    }
};

}  // namespace
