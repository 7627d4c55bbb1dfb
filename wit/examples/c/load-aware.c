// The scorer `load-aware` in C: 0.5 without a queue, 0 from `threshold` waiting requests on, and
// absent where the queue is unknown. What is in flight and not reported yet waits too.
//
// Built by `build`, which generates scoring.h from the package. Memory of arguments is ours to free,
// memory of results the caller's.

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "scoring.h"

typedef exports_wasm_epp_scoring_scorer_candidate_t candidate_t;
typedef exports_wasm_epp_scoring_scorer_list_candidate_t candidates_t;

static const double LOWEST = 1, HIGHEST = 1e6;

// Waiting requests from which on an endpoint scores 0.
static float threshold = 128;

// What is left of the parameters' text.
struct text {
    const char *at, *end;
};

static void skip_blanks(struct text *text) {
    while (text->at < text->end && strchr(" \t\r\n", *text->at) != NULL && *text->at != '\0') text->at++;
}

// Takes the next character that is no blank if it is this one.
static bool take(struct text *text, char wanted) {
    skip_blanks(text);
    if (text->at == text->end || *text->at != wanted) return false;
    text->at++;
    return true;
}

// Takes a text in quotes, as it is written; keys with escapes are none of ours.
static bool take_key(struct text *text, struct text *key) {
    if (!take(text, '"')) return false;
    key->at = text->at;
    while (text->at < text->end && *text->at != '"') text->at++;
    key->end = text->at;
    return take(text, '"');
}

// Takes a number of JSON's, at most 63 characters.
static bool take_number(struct text *text, double *number) {
    skip_blanks(text);
    char digits[64] = {0};
    size_t length = 0;
    while (text->at < text->end && length < sizeof digits - 1 && strchr("+-.eE0123456789", *text->at) != NULL &&
           *text->at != '\0') {
        digits[length++] = *text->at++;
    }
    char *rest = NULL;
    *number = strtod(digits, &rest);
    return length > 0 && *rest == '\0';
}

static bool refuse(scoring_string_t *reason, const char *text) {
    scoring_string_dup(reason, text);
    return false;
}

bool exports_wasm_epp_scoring_scorer_configure(scoring_string_t *parameters,
                                               exports_wasm_epp_scoring_scorer_needs_t *needs,
                                               scoring_string_t *reason) {
    // It reads nothing by name.
    memset(needs, 0, sizeof *needs);
    struct text text = {(const char *)parameters->ptr, (const char *)parameters->ptr + parameters->len};
    float configured = 128;
    bool is_read = take(&text, '{');
    if (is_read && !take(&text, '}')) {
        do {
            struct text key = {0};
            double number = 0;
            if (!take_key(&text, &key)) return refuse(reason, "parameters: not a JSON object");
            size_t length = (size_t)(key.end - key.at);
            char line[160];
            if (length != strlen("threshold") || memcmp(key.at, "threshold", length) != 0) {
                int shown = length < 64 ? (int)length : 64;
                snprintf(line, sizeof line, "%.*s: a value is not accepted: expected one of threshold", shown, key.at);
                return refuse(reason, line);
            }
            if (!take(&text, ':') || !take_number(&text, &number)) {
                return refuse(reason, "threshold: a value is not accepted: expected a number");
            }
            if (!(number >= LOWEST && number <= HIGHEST)) {
                snprintf(line, sizeof line, "threshold: %g is not accepted: expected 1 to 1000000", number);
                return refuse(reason, line);
            }
            configured = (float)number;
        } while (take(&text, ','));
        is_read = take(&text, '}');
    }
    skip_blanks(&text);
    if (!is_read || text.at != text.end) return refuse(reason, "parameters: not a JSON object");
    threshold = configured;
    scoring_string_free(parameters);
    return true;
}

static uint32_t sum(uint32_t one, uint32_t other) {
    return one > UINT32_MAX - other ? UINT32_MAX : one + other;
}

static uint32_t beyond(uint32_t all, uint32_t seen) {
    return all > seen ? all - seen : 0;
}

// Twice the largest batch of those without a queue: as many may be started at once.
static uint32_t largest_batch(const candidates_t *candidates) {
    uint32_t running = 0;
    for (size_t i = 0; i < candidates->len; i++) {
        const wasm_epp_scoring_types_load_t *load = &candidates->ptr[i].load;
        bool has_no_queue = load->waiting.is_some && load->waiting.val == 0;
        if (has_no_queue && load->running.is_some && load->running.val > running) running = load->running.val;
    }
    return sum(running, running);
}

// Reported waiting requests, and those in flight that the report cannot contain.
static uint32_t waiting(const candidate_t *candidate, uint32_t batch) {
    uint32_t reported = candidate->load.waiting.val;
    if (!candidate->load.running.is_some) return reported;
    uint32_t seen = reported == 0 ? batch : sum(reported, candidate->load.running.val);
    return sum(reported, beyond(candidate->in_flight.requests, seen));
}

void exports_wasm_epp_scoring_scorer_score(exports_wasm_epp_scoring_scorer_request_features_t *request,
                                           candidates_t *candidates, scoring_list_option_f32_t *scores) {
    uint32_t batch = largest_batch(candidates);
    scores->len = candidates->len;
    scores->ptr = candidates->len > 0 ? calloc(candidates->len, sizeof *scores->ptr) : NULL;
    if (candidates->len > 0 && scores->ptr == NULL) abort();
    for (size_t i = 0; i < candidates->len; i++) {
        const candidate_t *candidate = &candidates->ptr[i];
        if (!candidate->load.waiting.is_some) continue;
        float share = (float)waiting(candidate, batch) / threshold;
        scores->ptr[i].is_some = true;
        scores->ptr[i].val = 0.5f * (1.0f - (share < 1.0f ? share : 1.0f));
    }
    exports_wasm_epp_scoring_scorer_request_features_free(request);
    exports_wasm_epp_scoring_scorer_list_candidate_free(candidates);
}
