/* From the config's file to the stages of all rounds: see rounds.h. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"
#include "model/core/file.h"
#include "train/rounds/rounds.h"

/* ---- a stage of the list ---- */

typedef struct {
    Rounds *rounds;
    RoundSpec *spec;
} SpecReader;

static int fail_at(const Rounds *rounds, const YamlNode *node, const char *what) {
    char found[96];
    FAIL(ERR_USAGE, "%s:%d:%d: found %s; %s", rounds->path, node->line, node->column,
         yaml_describe(node, found, sizeof found), what);
}

static int take_name(SpecReader *reader, const YamlNode *node) {
    static const char *const taken[] = {"policy", "start", "round"};
    RoundSpec *spec = reader->spec;
    bool good = node->kind == YAML_SCALAR && islower((unsigned char)*node->text);
    for (const char *at = good ? node->text : ""; *at; at++)
        good = good && (islower((unsigned char)*at) || isdigit((unsigned char)*at) || *at == '-' || *at == '_');
    if (!good || strlen(node->text) > 64)
        return fail_at(reader->rounds, node, "a stage's name is of lower-case letters, digits, '-' and '_'");
    for (size_t i = 0; i < sizeof taken / sizeof *taken; i++)
        if (strcmp(taken[i], node->text) == 0) return fail_at(reader->rounds, node, "this name means something else");
    for (const RoundSpec *other = reader->rounds->specs; other < spec; other++)
        if (strcmp(other->name, node->text) == 0)
            return fail_at(reader->rounds, node, "an earlier stage has this name");
    spec->name = node->text;
    return OK;
}

static int take_command(SpecReader *reader, const YamlNode *node) {
    reader->spec->command = node->kind == YAML_SCALAR ? stage_command(node->text) : NULL;
    if (reader->spec->command) return OK;
    Text names = {0};
    text_puts(&names, "a stage runs one of ");
    stage_commands_list(&names);
    int rc = fail_at(reader->rounds, node, names.bytes ? names.bytes : "");
    text_free(&names);
    return rc;
}

static int take_round(SpecReader *reader, const YamlNode *node) {
    int64_t round;
    if (node->kind != YAML_SCALAR || node->quoted || !text_parse_int(node->text, &round) || round < 1)
        return fail_at(reader->rounds, node, "the number of a round is expected, from 1");
    if (strcmp(node->key, "first_round") == 0)
        reader->spec->first_round = round;
    else
        reader->spec->last_round = round;
    return OK;
}

static int take_models(SpecReader *reader, const YamlNode *node) {
    ConfigStrings *models = &reader->spec->models;
    if (node->kind != YAML_SEQUENCE || node->n_children == 0)
        return fail_at(reader->rounds, node, "a list of models is expected, as [\"{sft}\", \"{dpo}\"]");
    ARENA_TRY(models->items, &reader->rounds->arena, node->n_children);
    for (const YamlNode *item = node->children; item; item = item->next) {
        if (item->kind != YAML_SCALAR || yaml_is_null(item))
            return fail_at(reader->rounds, item, "a path, or a reference to a stage, is expected");
        models->items[models->n++] = item->text;
    }
    return OK;
}

/* A list of numbers, as `cria merge --weights` has them. */
static int take_weights(SpecReader *reader, const YamlNode *node) {
    Text text = {0};
    double number;
    for (const YamlNode *item = node->kind == YAML_SEQUENCE ? node->children : node; item; item = item->next) {
        bool good = item->kind == YAML_SCALAR && text_parse_double(item->text, &number);
        if (!good) text_free(&text);
        if (!good) return fail_at(reader->rounds, item, "numbers are expected, one for each of models");
        text_printf(&text, "%s%s", text.length ? "," : "", item->text);
        if (node->kind != YAML_SEQUENCE) break;
    }
    reader->spec->weights = arena_strdup(&reader->rounds->arena, text.bytes ? text.bytes : "");
    text_free(&text);
    if (!reader->spec->weights) FAIL(ERR_FAILED, "out of memory");
    return OK;
}

static int take_dtype(SpecReader *reader, const YamlNode *node) {
    if (node->kind != YAML_SCALAR ||
        (strcmp(node->text, "fp32") != 0 && strcmp(node->text, "bf16") != 0 && strcmp(node->text, "fp16") != 0))
        return fail_at(reader->rounds, node, "fp32, bf16 or fp16 is expected");
    reader->spec->dtype = node->text;
    return OK;
}

static const struct {
    const char *key;
    int (*take)(SpecReader *reader, const YamlNode *node);
    bool merge; /* of a stage that runs merge alone */
} stage_keys[] = {{"stage", take_name, false},       {"run", take_command, false},  {"first_round", take_round, false},
                  {"last_round", take_round, false}, {"models", take_models, true}, {"weights", take_weights, true},
                  {"dtype", take_dtype, true}};
enum { N_STAGE_KEYS = sizeof stage_keys / sizeof *stage_keys };

/* A copy of the entry that is not followed by what follows it. */
static int keep_option(SpecReader *reader, const YamlNode *entry) {
    YamlNode *copy, **end = &reader->spec->options->children;
    ARENA_TRY(copy, &reader->rounds->arena, 1);
    *copy = *entry;
    copy->next = NULL;
    while (*end) end = &(*end)->next;
    *end = copy;
    reader->spec->options->n_children++;
    return OK;
}

static int take_entry(SpecReader *reader, const YamlNode *entry) {
    for (const YamlNode *other = reader->spec->options->children; other; other = other->next)
        if (strcmp(other->key, entry->key) == 0) return fail_at(reader->rounds, entry, "the stage has this key twice");
    for (size_t i = 0; i < N_STAGE_KEYS; i++)
        if (strcmp(stage_keys[i].key, entry->key) == 0) return stage_keys[i].take(reader, entry);
    return keep_option(reader, entry);
}

static int check_merge(const RoundSpec *spec) {
    bool merge = strcmp(spec->command->name, "merge") == 0;
    if (merge && spec->models.n == 0)
        FAIL(ERR_USAGE,
             "%s: stage '%s' runs merge and needs models: what is averaged, or the adapter that is folded in",
             spec->where, spec->name);
    if (merge && spec->options->n_children > 0)
        FAIL(ERR_USAGE, "%s: stage '%s': merge has no '%s'; it takes models, weights and dtype", spec->where,
             spec->name, spec->options->children->key);
    if (!merge && (spec->models.n > 0 || spec->weights || spec->dtype))
        FAIL(ERR_USAGE, "%s: stage '%s': models, weights and dtype are merge's, and it runs %s", spec->where,
             spec->name, spec->command->name);
    return OK;
}

static int read_spec(Rounds *rounds, RoundSpec *spec, const YamlNode *node) {
    SpecReader reader = {rounds, spec};
    char where[512];
    if (node->kind != YAML_MAPPING)
        return fail_at(rounds, node, "a stage is a mapping, as {stage: tune, run: sft, data: …}");
    snprintf(where, sizeof where, "%s:%d:%d", rounds->path, node->line, node->column);
    spec->where = arena_strdup(&rounds->arena, where);
    spec->first_round = 1;
    spec->last_round = INT64_MAX;
    ARENA_TRY(spec->options, &rounds->arena, 1);
    *spec->options = (YamlNode){.kind = YAML_MAPPING, .line = node->line, .column = node->column};
    for (const YamlNode *entry = node->children; entry; entry = entry->next) TRY(take_entry(&reader, entry));
    if (!spec->command) FAIL(ERR_USAGE, "%s: the stage does not say what it runs, as 'run: sft'", spec->where);
    if (!spec->name) FAIL(ERR_USAGE, "%s: the stage has no name, as 'stage: tune'", spec->where);
    if (spec->first_round > spec->last_round)
        FAIL(ERR_USAGE, "%s: stage '%s': first_round %lld is after last_round %lld", spec->where, spec->name,
             (long long)spec->first_round, (long long)spec->last_round);
    return check_merge(spec);
}

/* ---- the file ---- */

static int read_specs(Rounds *rounds, const YamlNode *list) {
    if (list->kind != YAML_SEQUENCE || list->n_children == 0)
        return fail_at(rounds, list, "a list of stages is expected");
    ARENA_TRY(rounds->specs, &rounds->arena, list->n_children);
    for (const YamlNode *node = list->children; node; node = node->next, rounds->n_specs++)
        TRY(read_spec(rounds, &rounds->specs[rounds->n_specs], node));
    return OK;
}

/* The shared options are all but the entry `stages`. */
static int take_file(Rounds *rounds, Config *config, const YamlNode *root) {
    YamlNode shared = {.kind = YAML_MAPPING}, *copy, **end = &shared.children;
    const YamlNode *list = NULL;
    if (!root || root->kind != YAML_MAPPING)
        FAIL(ERR_USAGE, "%s: a config is a mapping, 'key: value' lines", rounds->path);
    for (const YamlNode *entry = root->children; entry; entry = entry->next) {
        if (strcmp(entry->key, "stages") == 0) {
            if (list) return fail_at(rounds, entry, "'stages' is given twice");
            list = entry;
            continue;
        }
        ARENA_TRY(copy, &rounds->arena, 1);
        *copy = *entry;
        copy->next = NULL;
        *end = copy;
        end = &copy->next;
    }
    if (!list) FAIL(ERR_USAGE, "%s: it has no 'stages', the list of what a round does", rounds->path);
    TRY(config_apply(config, &shared, rounds->path));
    return read_specs(rounds, list);
}

int rounds_load(Config *config, const char *path, void *context) {
    Rounds *rounds = context;
    YamlNode *root;
    rounds->path = path;
    if (file_read(&rounds->bytes, &rounds->size, path, YAML_MAX_BYTES) != OK)
        return error_context(ERR_USAGE, "reading the config");
    TRY(yaml_parse(&root, &rounds->arena, path, rounds->bytes, rounds->size));
    return take_file(rounds, config, root);
}

void rounds_free(Rounds *rounds) {
    for (size_t i = 0; i < rounds->n_stages; i++) {
        config_free(rounds->stages[i].config);
        config_free(rounds->stages[i].symbolic);
    }
    config_free(rounds->config);
    text_free(&rounds->arguments);
    free(rounds->bytes);
    arena_free(&rounds->arena);
}

/* ---- the stages of all rounds ---- */

/* A stage's own key that its command does not read would be passed over in silence. */
static int check_own(const RoundSpec *spec) {
    int rc = OK;
    Config *own;
    TRY(config_new(&own));
    TRY_TO(done, config_apply(own, spec->options, ""));
    for (int id = 0; id < OPTION_COUNT; id++) {
        if (!config_is_set(own, (OptionId)id)) continue;
        bool folder = id == OPTION_output;
        if (!folder && config_in_sections((OptionId)id, stage_sections(spec->command))) continue;
        if (folder)
            FAIL_TO(done, ERR_USAGE, "%s: stage '%s': its folder follows from its name; leave out output", spec->where,
                    spec->name);
        FAIL_TO(done, ERR_USAGE, "%s: stage '%s': cria %s does not read %s", spec->where, spec->name,
                spec->command->name, option_table[id].key);
    }
done:
    config_free(own);
    return rc;
}

/* Another round draws other samples, and reads its data in another order. */
static int advance_seeds(Config *config, const char *sections, int64_t round) {
    static const OptionId seeds[] = {OPTION_seed, OPTION_generate_seed};
    for (size_t i = 0; i < sizeof seeds / sizeof *seeds; i++) {
        char value[32];
        int64_t seed = i == 0 ? config->seed : config->generate_seed;
        snprintf(value, sizeof value, "%lld", (long long)(seed + round - 1));
        if (round > 1 && config_in_sections(seeds[i], sections))
            TRY(config_set(config, option_table[seeds[i]].key, value, "the round"));
    }
    return OK;
}

/* The shared options that the command reads, the stage's own over them, and what follows from its place. */
static int make_config(Rounds *rounds, const RoundStage *stage, Config **out, const char *root) {
    const RoundSpec *spec = stage->spec;
    const char *sections = stage_sections(spec->command);
    TRY(config_new(out));
    Config *config = *out;
    for (int id = 0; id < OPTION_COUNT; id++)
        if (config_is_set(rounds->config, (OptionId)id) && config_in_sections((OptionId)id, sections))
            TRY(config_copy_option(config, rounds->config, (OptionId)id));
    if (*sections) TRY(config_set(config, "model.base", "{policy}", spec->where));
    if (spec->command->makes & MAKES_FIGURES) TRY(config_set(config, "dpo.reference", "{start}", spec->where));
    TRY(config_apply(config, spec->options, rounds->path));
    Text folder = {0};
    text_printf(&folder, "%s/%s", root, stage->name);
    int rc = folder.bytes ? config_set(config, "output", folder.bytes, spec->where) : ERR_FAILED;
    text_free(&folder);
    TRY(rc);
    TRY(advance_seeds(config, sections, stage->round));
    return references_expand(rounds, stage, config, root);
}

static int name_stage(Rounds *rounds, RoundStage *stage) {
    static const char *const endings[] = {"", ".yaml", ".json"};
    const char **names[] = {&stage->folder, &stage->yaml, &stage->record};
    Text text = {0};
    text_printf(&text, "round-%lld/%s", (long long)stage->round, stage->spec->name);
    stage->name = text.bytes ? arena_strdup(&rounds->arena, text.bytes) : NULL;
    for (int i = 0; i < 3 && stage->name; i++) {
        text_clear(&text);
        text_printf(&text, "%s/%s%s", rounds->config->output, stage->name, endings[i]);
        *names[i] = text.bytes ? arena_strdup(&rounds->arena, text.bytes) : NULL;
    }
    text_free(&text);
    if (!stage->name || !stage->record) FAIL(ERR_FAILED, "out of memory");
    return OK;
}

static int make_stage(Rounds *rounds, RoundStage *stage) {
    const char *root = rounds->config->output;
    TRY(name_stage(rounds, stage));
    TRY(make_config(rounds, stage, &stage->config, root));
    TRY(make_config(rounds, stage, &stage->symbolic, "{output}"));
    stage->models = stage->symbolic_models = stage->spec->models;
    TRY(references_expand_models(rounds, stage, root, &stage->models));
    return references_expand_models(rounds, stage, "{output}", &stage->symbolic_models);
}

static bool has_part(const RoundSpec *spec, int64_t round) {
    return round >= spec->first_round && round <= spec->last_round;
}

/* A stage sees those that were made before it. */
static int make_round(Rounds *rounds, int64_t round) {
    int of_round = 0, number = 0;
    for (size_t i = 0; i < rounds->n_specs; i++) of_round += has_part(&rounds->specs[i], round);
    if (of_round == 0) FAIL(ERR_USAGE, "%s: round %lld has no stage", rounds->path, (long long)round);
    for (size_t i = 0; i < rounds->n_specs; i++) {
        if (!has_part(&rounds->specs[i], round)) continue;
        number++;
        RoundStage *stage = &rounds->stages[rounds->n_stages];
        *stage = (RoundStage){.spec = &rounds->specs[i],
                              .round = round,
                              .place = rounds->n_stages,
                              .number = number,
                              .of_round = of_round};
        int rc = make_stage(rounds, stage);
        rounds->n_stages++;
        TRY(rc);
    }
    return OK;
}

int rounds_make(Rounds *rounds) {
    const Config *config = rounds->config;
    if (rounds->n_specs == 0) FAIL(ERR_USAGE, "a config is needed: cria rounds CONFIG.yaml");
    TRY(config_require(config, OPTION_output));
    for (size_t i = 0; i < rounds->n_specs; i++) TRY(check_own(&rounds->specs[i]));
    ARENA_TRY(rounds->stages, &rounds->arena, rounds->n_specs * (size_t)config->rounds_count);
    for (int64_t round = 1; round <= config->rounds_count; round++) TRY(make_round(rounds, round));
    return OK;
}
