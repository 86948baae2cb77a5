/* References between stages: see rounds.h. A reference begins a path, "{best}/sft.jsonl"; {round} may stand anywhere.
 * Braces have no other use in the paths of such a config. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"
#include "train/rounds/rounds.h"

/* Who asks, and for what. */
typedef struct {
    const Rounds *rounds;
    const RoundStage *stage;
    const char *root;
    Arena *arena;
    const char *where, *key; /* of the option, for messages */
    int wanted;              /* MAKES_… bits */
} Asker;

typedef struct {
    const char **items;
    size_t n;
} Paths;

#define FAIL_ASKER(a, ...)                                               \
    do {                                                                 \
        error_set(ERR_USAGE, __FILE__, __LINE__, __VA_ARGS__);           \
        return error_context(ERR_USAGE, "%s: %s", (a)->where, (a)->key); \
    } while (0)

static int add_path(const Asker *a, Paths *paths, const char *start, const char *rest) {
    size_t room = strlen(start) + strlen(rest) + 1;
    const char **items;
    char *path;
    ARENA_TRY(items, a->arena, paths->n + 1);
    if (paths->n > 0) memcpy(items, paths->items, paths->n * sizeof *items);
    ARENA_TRY(path, a->arena, room);
    snprintf(path, room, "%s%s", start, rest);
    items[paths->n] = path;
    *paths = (Paths){items, paths->n + 1};
    return OK;
}

static int add_folder(const Asker *a, Paths *paths, const RoundStage *stage, const char *rest) {
    char *folder;
    size_t room = strlen(a->root) + strlen(stage->name) + 2;
    ARENA_TRY(folder, a->arena, room);
    snprintf(folder, room, "%s/%s", a->root, stage->name);
    return add_path(a, paths, folder, rest);
}

/* ---- {round} ---- */

static int put_round(const Asker *a, const char **text) {
    static const char reference[] = "{round}";
    Text out = {0};
    const char *at = *text, *next;
    if (!strstr(at, reference)) return OK;
    for (; (next = strstr(at, reference)) != NULL; at = next + sizeof reference - 1) {
        text_append(&out, at, (size_t)(next - at));
        text_printf(&out, "%lld", (long long)a->stage->round);
    }
    text_puts(&out, at);
    *text = out.failed ? NULL : arena_strdup(a->arena, out.bytes);
    text_free(&out);
    if (!*text) FAIL(ERR_FAILED, "out of memory");
    return OK;
}

/* ---- the stage that is meant ---- */

static int makes_of(const Rounds *rounds, const RoundStage *stage) {
    const RoundStage *first = stage->spec->models.n > 0 ? references_stage(rounds, stage->models.items[0]) : NULL;
    return first ? makes_of(rounds, first) : stage->spec->command->makes;
}

static const char *makes_name(int makes) {
    return makes & MAKES_POLICY    ? "a language model"
           : makes & MAKES_REWARD  ? "a reward model"
           : makes & MAKES_RECORDS ? "records"
                                   : "figures";
}

/* The newest policy before this stage, or before its round. */
static const RoundStage *newest_policy(const Asker *a, bool before_round) {
    for (size_t i = a->stage->place; i-- > 0;) {
        const RoundStage *other = &a->rounds->stages[i];
        bool early = !before_round || other->round < a->stage->round;
        if (early && makes_of(a->rounds, other) & MAKES_POLICY) return other;
    }
    return NULL;
}

static int unknown_stage(const Asker *a, const char *name) {
    enum { MOST = 64 };
    const char *names[MOST + 3] = {"policy", "start", "round"};
    size_t n = 3;
    bool known = false;
    for (size_t i = 0; i < a->rounds->n_specs; i++) {
        known = known || strcmp(a->rounds->specs[i].name, name) == 0;
        if (n < MOST + 3) names[n++] = a->rounds->specs[i].name;
    }
    const char *nearest = known ? NULL : text_nearest(name, names, n);
    if (known)
        FAIL_ASKER(a, "{%s}: in round %lld that stage has not run before '%s'", name, (long long)a->stage->round,
                   a->stage->spec->name);
    if (nearest) FAIL_ASKER(a, "there is no stage '%s'; did you mean '%s'?", name, nearest);
    FAIL_ASKER(a, "there is no stage '%s'", name);
}

static int check_product(const Asker *a, const RoundStage *stage, const char *rest) {
    int makes = makes_of(a->rounds, stage);
    if (!(makes & a->wanted))
        FAIL_ASKER(a, "stage '%s' makes %s; needed here: %s", stage->spec->name, makes_name(makes),
                   makes_name(a->wanted));
    bool model = (makes & (MAKES_POLICY | MAKES_REWARD)) != 0, folder = *rest == '\0';
    bool records = strcmp(rest, "/sft.jsonl") == 0 || strcmp(rest, "/pairs.jsonl") == 0;
    if (model && !folder && strcmp(rest, "/best") != 0)
        FAIL_ASKER(a, "{%s}%s: a stage's model is its folder, or its folder/best", stage->spec->name, rest);
    if (!model && folder != (strcmp(a->key, "rejection.earlier") == 0))
        FAIL_ASKER(a,
                   folder ? "{%s}: its records are {%s}/sft.jsonl and {%s}/pairs.jsonl"
                          : "{%s}: the folder itself, {%s}, is needed",
                   stage->spec->name, stage->spec->name, stage->spec->name);
    if (!model && !folder && !records)
        FAIL_ASKER(a, "{%s}%s: its records are sft.jsonl and pairs.jsonl", stage->spec->name, rest);
    return OK;
}

/* "earlier", "all", or a round's number. */
static int add_selected(const Asker *a, Paths *paths, const char *name, const char *selector, const char *rest,
                        bool list) {
    int64_t round = 0;
    bool earlier = strcmp(selector, "earlier") == 0, all = strcmp(selector, "all") == 0;
    if (!earlier && !all && !(text_parse_int(selector, &round) && round >= 1))
        FAIL_ASKER(a, "{%s@%s}: what follows @ is earlier, all, or the number of a round", name, selector);
    if ((earlier || all) && !list)
        FAIL_ASKER(a, "{%s@%s} stands for several folders; here one is needed", name, selector);
    size_t before = paths->n;
    bool known = false;
    for (size_t i = 0; i < a->rounds->n_specs; i++) known = known || strcmp(a->rounds->specs[i].name, name) == 0;
    for (size_t i = 0; i < a->stage->place && known; i++) {
        const RoundStage *other = &a->rounds->stages[i];
        if (strcmp(other->spec->name, name) != 0 || (earlier && other->round == a->stage->round)) continue;
        if (round > 0 && other->round != round) continue;
        TRY(check_product(a, other, rest));
        TRY(add_folder(a, paths, other, rest));
    }
    if (!known || (round > 0 && paths->n == before)) return unknown_stage(a, name);
    return OK;
}

static int add_newest(const Asker *a, Paths *paths, const char *name, const char *rest) {
    bool start = strcmp(name, "start") == 0;
    const RoundStage *found = NULL;
    if (start || strcmp(name, "policy") == 0) {
        if (!(a->wanted & MAKES_POLICY))
            FAIL_ASKER(a, "{%s} is a language model; needed here: %s", name, makes_name(a->wanted));
        found = newest_policy(a, start);
        if (found) return add_folder(a, paths, found, rest);
        if (!*a->rounds->config->model_base)
            FAIL_ASKER(a, "no stage before this one makes a model, and model.base is not given for all of them");
        return add_path(a, paths, a->rounds->config->model_base, "");
    }
    for (size_t i = 0; i < a->stage->place; i++)
        if (strcmp(a->rounds->stages[i].spec->name, name) == 0) found = &a->rounds->stages[i];
    if (!found) return unknown_stage(a, name);
    TRY(check_product(a, found, rest));
    return add_folder(a, paths, found, rest);
}

/* The paths that a text stands for: itself, where it refers to nothing. */
static int expand(const Asker *a, const char *text, bool list, Paths *paths) {
    char name[80];
    TRY(put_round(a, &text));
    const char *open = strchr(text, '{'), *close = strchr(text, '}');
    if (!open && !close) return add_path(a, paths, text, "");
    if (open != text || !close || strpbrk(close + 1, "{}") || (size_t)(close - open) > sizeof name)
        FAIL_ASKER(a, "'%s': a reference to a stage begins the path, as {best}/sft.jsonl; {round} may stand anywhere",
                   text);
    snprintf(name, sizeof name, "%.*s", (int)(close - open - 1), open + 1);
    char *selector = strchr(name, '@');
    if (!selector) return add_newest(a, paths, name, close + 1);
    *selector++ = '\0';
    return add_selected(a, paths, name, selector, close + 1, list);
}

/* ---- the options ---- */

static int wanted_by(OptionId id, const RoundStage *stage) {
    switch (id) {
    case OPTION_rejection_model:
    case OPTION_rejection_safety_model:
    case OPTION_ppo_model:
    case OPTION_ppo_safety_model:
        return MAKES_REWARD;
    case OPTION_rejection_prompts:
    case OPTION_rejection_earlier:
        return MAKES_RECORDS;
    case OPTION_ppo_value_model:
        return MAKES_POLICY | MAKES_REWARD;
    case OPTION_model_base: /* a reward model may learn on */
        return stage->spec->command->makes == MAKES_REWARD ? MAKES_POLICY | MAKES_REWARD : MAKES_POLICY;
    default:
        return MAKES_POLICY;
    }
}

static int expand_sources(Asker *a, ConfigSources *sources) {
    ConfigSources out = {.share = sources->share};
    a->wanted = MAKES_RECORDS;
    for (size_t i = 0; i < sources->n; i++) {
        Paths paths = {0};
        ConfigSource *items;
        TRY(expand(a, sources->items[i].path, true, &paths));
        ARENA_TRY(items, a->arena, out.n + paths.n);
        if (out.n > 0) memcpy(items, out.items, out.n * sizeof *items);
        for (size_t p = 0; p < paths.n; p++) {
            items[out.n + p] = sources->items[i];
            items[out.n + p].path = paths.items[p];
        }
        out.items = items;
        out.n += paths.n;
    }
    *sources = out;
    return OK;
}

static int expand_strings(const Asker *a, ConfigStrings *strings) {
    Paths paths = {0};
    for (size_t i = 0; i < strings->n; i++) TRY(expand(a, strings->items[i], true, &paths));
    *strings = (ConfigStrings){paths.items, paths.n};
    return OK;
}

static int expand_option(Asker *a, Config *config, OptionId id) {
    const Option *option = &option_table[id];
    void *field = (char *)config + option->offset;
    a->where = config_where(config, id);
    a->key = option->key;
    a->wanted = wanted_by(id, a->stage);
    if (id == OPTION_rejection_earlier) return expand_strings(a, field);
    if (option->type == OPTION_SOURCES) return expand_sources(a, field);
    if (option->type != OPTION_PATH || id == OPTION_output) return OK;
    Paths paths = {0};
    TRY(expand(a, *(const char **)field, false, &paths));
    *(const char **)field = paths.items[0];
    return OK;
}

int references_expand(Rounds *rounds, const RoundStage *stage, Config *config, const char *root) {
    Asker asker = {.rounds = rounds, .stage = stage, .root = root, .arena = &rounds->arena};
    for (int id = 0; id < OPTION_COUNT; id++)
        if (config_is_set(config, (OptionId)id)) TRY(expand_option(&asker, config, (OptionId)id));
    return OK;
}

int references_expand_models(Rounds *rounds, const RoundStage *stage, const char *root, ConfigStrings *models) {
    Asker asker = {.rounds = rounds,
                   .stage = stage,
                   .root = root,
                   .arena = &rounds->arena,
                   .where = stage->spec->where,
                   .key = "models",
                   .wanted = MAKES_POLICY | MAKES_REWARD};
    return expand_strings(&asker, models);
}

const RoundStage *references_stage(const Rounds *rounds, const char *path) {
    const char *roots[] = {rounds->config->output, "{output}"};
    for (int r = 0; r < 2; r++) {
        size_t n = strlen(roots[r]);
        if (strncmp(path, roots[r], n) != 0 || path[n] != '/') continue;
        for (size_t i = 0; i < rounds->n_stages; i++) {
            const char *name = rounds->stages[i].name;
            size_t length = strlen(name);
            const char *rest = path + n + 1;
            if (strncmp(rest, name, length) == 0 && (rest[length] == '\0' || rest[length] == '/'))
                return &rounds->stages[i];
        }
    }
    return NULL;
}
