# cria: make | make quickstart | make test | make figure | make lint | make asan | make bench | make soak | make tune | make install PREFIX=…
#
# Every .c in the rooms below is part of the library; train/main.c is the program. Set-up runs first and does nothing
# when nothing is missing. Another tree of objects: make BUILD=build-x CC=clang.

BUILD  ?= build
PREFIX ?= /usr/local
CC     ?= cc
ifeq ($(origin CC),default)
CC := gcc
endif
VERSION := 0.1.0

ROOMS := model/core model/kernels model/kernels/fast model/kernels/products model/kernels/reference model/autodiff model/ops model model/formats data/tokenizer data/chat data optim dist eval configs train train/console train/files train/objectives train/answers train/loop train/ppo train/sampling train/rounds train/commands
SOURCES := $(sort $(foreach room,$(ROOMS),$(wildcard $(room)/*.c)))
LIB_SOURCES := $(filter-out train/main.c,$(SOURCES))
LIB_OBJECTS := $(LIB_SOURCES:%.c=$(BUILD)/%.o)
# tests/mpi_*.c run under mpirun, started by tests/e2e_mpi.sh
TEST_SOURCES := $(wildcard tests/test_*.c tests/mpi_*.c)
TESTS := $(TEST_SOURCES:tests/%.c=$(BUILD)/tests/%)

WARNINGS := -Wall -Wextra -Wshadow -Wconversion
OPTIMISE ?= -O3 -g -fno-math-errno -fno-trapping-math -ffp-contract=off
PACKAGES := ompi-c hdf5-serial openblas libfyaml jansson libpcre2-8 zlib libzstd libedit
# Asked once, when first needed: set-up may just have installed pkg-config.
PKG_CFLAGS = $(eval PKG_CFLAGS := $(patsubst -I%,-isystem %,$(shell pkg-config --cflags $(PACKAGES))))$(PKG_CFLAGS)
PKG_LIBS = $(eval PKG_LIBS := $(shell pkg-config --libs $(PACKAGES)))$(PKG_LIBS)
# oneDNN is asked for by its header: Debian's package brings no pkg-config file. Without it the products are cria's own.
COMMA := ,
HAS_ONEDNN = $(eval HAS_ONEDNN := $(shell echo '#include <dnnl.h>' | $(CC) -E - >/dev/null 2>&1 && echo yes))$(HAS_ONEDNN)
LANGUAGE = -std=c11 -fopenmp -I. -D_GNU_SOURCE $(PKG_CFLAGS) $(if $(HAS_ONEDNN),-DCRIA_ONEDNN) -DCRIA_VERSION='"$(VERSION)"'
CFLAGS_ALL = $(LANGUAGE) $(WARNINGS) $(OPTIMISE) $(CFLAGS)
# -rdynamic: the watchdog's stacks name functions
LIBS = $(PKG_LIBS) $(if $(HAS_ONEDNN),-Wl$(COMMA)--as-needed -ldnnl -Wl$(COMMA)--no-as-needed) -lm -lpthread -rdynamic

all: setup $(BUILD)/cria
ifeq ($(BUILD),build)
	@ln -sf $(BUILD)/cria cria
endif

# ---- set-up -----------------------------------------------------------------------------------------------------

setup:
	@.ci/setup build $(filter lint quickstart,$(MAKECMDGOALS)) $(filter clang,$(CC))
.PHONY: all setup

# ---- compiling --------------------------------------------------------------------------------------------------

# The tests' AMX products, on emulated tiles.
$(BUILD)/tests/test_amx $(BUILD)/tests/test_product_choice: $(BUILD)/tests/amx_emulation.o

# The fast kernels are compiled for their instruction set and called only where the CPU has it.
ifneq ($(filter x86_64 amd64,$(shell uname -m)),)
AVX512 := -mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma
$(BUILD)/tests/amx_emulation.o: ARCH := $(AVX512)
define ARCH_OF
$(BUILD)/$(1)/avx2_%.o $(BUILD)/tidy/$(1)/avx2_%.ok: ARCH := -mavx2 -mfma -mf16c
$(BUILD)/$(1)/avx512_%.o $(BUILD)/tidy/$(1)/avx512_%.ok: ARCH := $(AVX512)
$(BUILD)/$(1)/avx512bf16_%.o $(BUILD)/tidy/$(1)/avx512bf16_%.ok: ARCH := $(AVX512) -mavx512bf16
$(BUILD)/$(1)/amx_%.o $(BUILD)/tidy/$(1)/amx_%.ok: ARCH := $(AVX512) -mavx512bf16 -mamx-tile -mamx-bf16
endef
$(foreach room,model/kernels/fast model/kernels/products,$(eval $(call ARCH_OF,$(room))))
endif

$(BUILD)/%.o: %.c Makefile | setup
	@mkdir -p $(@D)
	@echo '  CC  $<'
	@$(CC) $(CFLAGS_ALL) $(ARCH) -MMD -MP -c $< -o $@

$(BUILD)/libcria.a: $(LIB_OBJECTS)
	@rm -f $@
	@ar rcs $@ $^

$(BUILD)/cria: $(BUILD)/train/main.o $(BUILD)/libcria.a
	@echo '  LD  $@'
	@$(CC) $(CFLAGS_ALL) $^ -o $@ $(LDFLAGS) $(LIBS)

$(BUILD)/tests/%: $(BUILD)/tests/%.o $(BUILD)/libcria.a
	@echo '  LD  $@'
	@$(CC) $(CFLAGS_ALL) $^ -o $@ $(LDFLAGS) $(LIBS) $(shell pkg-config --libs check)

-include $(LIB_OBJECTS:.o=.d) $(BUILD)/train/main.d $(TEST_SOURCES:%.c=$(BUILD)/%.d) $(BUILD)/tests/amx_emulation.d $(BUILD)/tests/tune_products.d $(BUILD)/tests/lint_speed.d

# ---- testing ----------------------------------------------------------------------------------------------------

# T="test_tape test_philox" runs those alone.
test: all $(TESTS)
	@BUILD=$(BUILD) tests/run.sh $(T)

check-layers:
	@tests/check_layers.sh

lint: setup
	@clang-format --dry-run --Werror $(foreach room,$(ROOMS) tests,$(wildcard $(room)/*.[ch]))
	@$(MAKE) --no-print-directory -k -j$$(nproc) tidy
	@cppcheck --quiet --error-exitcode=1 --std=c11 --enable=warning,performance,portability --inline-suppr -I. $(SOURCES)

# A file that clang-tidy (.clang-tidy) had nothing to say about is asked again after a change of it or of any header.
TIDY := $(SOURCES:%.c=$(BUILD)/tidy/%.ok)
tidy: $(TIDY)
$(TIDY): $(BUILD)/tidy/%.ok: %.c .clang-tidy model/kernels/.clang-tidy $(foreach room,$(ROOMS),$(wildcard $(room)/*.h $(room)/*.def))
	@mkdir -p $(@D)
	@echo '  TIDY $<'
	@clang-tidy --quiet $< -- $(LANGUAGE) $(ARCH) 2>$@.log || { cat $@.log; exit 1; }
	@touch $@

# Libraries' own leaks are named in .ci/lsan, each with its reason. What a sanitizer stops has a status of its own,
# which no test of wrong usage takes for cria's.
asan:
	LSAN_OPTIONS=exitcode=99:suppressions=$(CURDIR)/.ci/lsan:print_suppressions=0 ASAN_OPTIONS=exitcode=99 \
	UBSAN_OPTIONS=exitcode=99:print_stacktrace=1 \
	$(MAKE) BUILD=build-asan CC=$(CC) test \
	    OPTIMISE="-O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined" \
	    LDFLAGS="-fsanitize=address,undefined"

soak: all $(TESTS)
	@BUILD=$(BUILD) tests/soak.sh

# Prints the rows of model/kernels/products/choice.def for this CPU.
tune: setup $(BUILD)/tests/tune_products
	@OMP_NUM_THREADS=1 $(BUILD)/tests/tune_products

bench: all
	@BUILD=$(BUILD) tests/bench.sh

# The preference task: reward against KL of every method that learns preferences.
figure: all
	@CRIA=$(BUILD)/cria FIGURE=tests/preference_task.svg tests/preference_task.sh

quickstart: all
	@CRIA=$(BUILD)/cria train/quickstart.sh

install: all
	install -D -m 755 $(BUILD)/cria $(DESTDIR)$(PREFIX)/bin/cria
	install -d $(DESTDIR)$(PREFIX)/share/cria
	cp $(wildcard configs/*.yaml) README.md $(DESTDIR)$(PREFIX)/share/cria/

clean:
	rm -rf build build-* cria
.PHONY: test check-layers lint tidy asan soak tune bench figure quickstart install clean
.DELETE_ON_ERROR:
.SECONDARY:
