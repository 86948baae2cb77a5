/* cria tokenize: text on stdin, a JSON array of ids on stdout; with --decode the other way. */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/tokenizer/tokenizer.h"
#include "model/core/error.h"
#include "model/core/text.h"
#include "train/console/cli.h"
#include "train/commands.h"
#include "train/files/model_file.h"

static int read_stdin(Text *input) {
    char buffer[65536];
    size_t n;
    while ((n = fread(buffer, 1, sizeof buffer, stdin)) > 0) text_append(input, buffer, n);
    if (ferror(stdin)) FAIL(ERR_FAILED, "reading standard input: %s", strerror(errno));
    text_append(input, "", 0);
    return text_check(input);
}

static int print_ids(const Tokenizer *tokenizer, const Text *input, int flags) {
    TokenList ids = {0};
    int rc = tokenizer_encode(tokenizer, input->bytes ? input->bytes : "", input->length, flags, &ids);
    if (rc == OK) {
        putchar('[');
        for (size_t i = 0; i < ids.n; i++) printf(i > 0 ? ", %d" : "%d", ids.ids[i]);
        printf("]\n");
    }
    token_list_free(&ids);
    return rc;
}

/* Numbers with commas or white space between them, in brackets or not. */
static int parse_ids(const Text *input, TokenList *ids) {
    const char *at = input->bytes ? input->bytes : "", *end = at + input->length;
    for (;;) {
        while (at < end && (isspace((unsigned char)*at) || strchr("[],", *at)) && *at) at++;
        if (at == end) return OK;
        char *after;
        errno = 0;
        long id = strtol(at, &after, 10);
        if (after == at || errno != 0 || id < INT32_MIN || id > INT32_MAX)
            FAIL(ERR_REFUSED, "byte %td of the input: expected a token id, found '%.10s'", at - input->bytes, at);
        TRY(token_list_append(ids, &(int32_t){(int32_t)id}, 1));
        at = after;
    }
}

static int print_text(const Tokenizer *tokenizer, const Text *input, bool keep_special) {
    TokenList ids = {0};
    char *text = NULL;
    size_t size;
    int rc = parse_ids(input, &ids);
    if (rc == OK) rc = tokenizer_decode(tokenizer, ids.ids, ids.n, keep_special, &text, &size);
    if (rc == OK) fwrite(text, 1, size, stdout);
    free(text);
    token_list_free(&ids);
    return rc;
}

int command_tokenize(int argc, char **argv) {
    const char *path = NULL;
    bool bos = false, eos = false, special = false, decode = false;
    const Flag flags[] = {
        {"tokenizer", 't', FLAG_TEXT, &path, "TOKENIZER", "", "a tokenizer's file or directory, or 'bytes'"},
        {"bos", 0, FLAG_SWITCH, &bos, "", "", "begin with the token that begins texts"},
        {"eos", 0, FLAG_SWITCH, &eos, "", "", "end with the token that ends texts"},
        {"special", 0, FLAG_SWITCH, &special, "", "", "names of special tokens in the text mean those tokens"},
        {"decode", 0, FLAG_SWITCH, &decode, "", "", "ids in, text out (with --special, special tokens too)"},
    };
    CliResult cli;
    TRY(cli_parse(&cli,
                  &(CliSpec){.usage = "-t TOKENIZER [flags] < TEXT",
                             .about = "Reads text and prints its token ids as a JSON array.",
                             .flags = flags,
                             .n_flags = sizeof flags / sizeof *flags},
                  argc, argv));
    if (cli.helped) return OK;
    if (!path) FAIL(ERR_USAGE, "no tokenizer was named: -t FILE, -t DIRECTORY or -t bytes");
    Tokenizer *tokenizer;
    Text input = {0};
    TRY(model_file_load_tokenizer(&tokenizer, path));
    int rc = read_stdin(&input);
    int encode_flags = (bos ? TOKENIZE_BOS : 0) | (eos ? TOKENIZE_EOS : 0) | (special ? TOKENIZE_SPECIAL : 0);
    if (rc == OK) rc = decode ? print_text(tokenizer, &input, special) : print_ids(tokenizer, &input, encode_flags);
    text_free(&input);
    tokenizer_free(tokenizer);
    return rc;
}
