# SPDX-License-Identifier: MIT
#
# A front for Meson, so that "make" does all there is to do here; the build
# itself is described in meson.build.
#
#   make            build/hmm, build/libhmm.so, build/libhmm-preload.so
#   make test       all tests; the last line says how many passed
#   make test-long  the same and more of them, on more memory, for more rounds: HMM_TEST_LONG=1 make test; hours
#   make torture    for minutes, or HOURS=N: programs that check themselves
#   make stress     stress-ng's memory stressors, each way of --vm once, on a quarter of their memory; PART=K/N of them
#   make programs   real programs on all, half and a quarter of their memory, against themselves without hmm
#   make demo       a real program on a third of the RAM it needs
#   make bench      measurements: hmm run beside the kernel's swap, half an hour; HMM_BENCH_LONG=1: hours (bench/run/bench.py)
#   make bench-scale    is a page as cheap where there are many?  256 MiB to 16 GiB, a part of a TiB, 10,000 mappings, 500 threads; minutes
#   make kernel-suite   the kernel's own tests of HMM on our dmirror; fetches a kernel's source, or KERNEL_SOURCE=DIR
#   make fuzz       for a minute, or SECONDS=N: what reads the bytes of a remote peer, under libFuzzer
#   make model      searches the models of the protocols to the end, and breaks their rules (doc/model.md)
#   make tsan       tests of umm under threads, built with ThreadSanitizer
#   make asan       unit tests, built with AddressSanitizer and UndefinedBehaviorSanitizer
#   make asan-run   tests of hmm run, its supervisor built with AddressSanitizer and UndefinedBehaviorSanitizer; TESTS=...
#   make tsan-run   the same with ThreadSanitizer
#   make coverage   which lines and branches of the engine tests and fault injection reach; by file in coverage.txt
#   make valgrind   unit tests that need no userfaultfd, under valgrind
#   make fuzz-read  what is read from elsewhere, by libFuzzer, or SECONDS=N of it
#   make inject     each call of the engine that can fail does, at many occurrences; PART=K/N of those of hmm run
#   make late       who gets to a site comes late, one site after the other, in tests of hmm run; hours, or PART=K/N of it
#   make install    PREFIX=/usr/local, DESTDIR=
#   make format     clang-format over all C files
#   make clean
#
# BUILD=DIR builds elsewhere; MESONFLAGS go to "meson setup".

BUILD ?= build
PREFIX ?= /usr/local
DESTDIR ?=
MESONFLAGS ?=

.DEFAULT_GOAL := build
.PHONY: build deps test test-long torture stress programs demo bench bench-scale kernel-suite fuzz fuzz-read model tsan asan asan-run tsan-run coverage inject late valgrind install format clean

deps:
	@scripts/deps

# Meson asks dpkg-dev for the place of libraries, which need not be installed;
# the compiler knows it too.  Asked late: it may be deps that installs it.
LIBDIR = $(shell m=$$(gcc -print-multiarch 2>/dev/null); echo $${m:+--libdir lib/$$m})

# A setup that was interrupted leaves a directory without build.ninja.
$(BUILD)/build.ninja: | deps
	@meson setup --prefix '$(PREFIX)' $(LIBDIR) $(MESONFLAGS) '$(BUILD)' >'$(BUILD).setup.log' 2>&1 || \
		{ cat '$(BUILD).setup.log'; rm -f '$(BUILD).setup.log'; exit 1; }
	@rm -f '$(BUILD).setup.log'

build: deps $(BUILD)/build.ninja
	@ninja -C '$(BUILD)' --quiet
	@for f in hmm libhmm.so libhmm-preload.so; do \
		at=$$(cd '$(BUILD)' && find src -name $$f); \
		[ -e '$(BUILD)'/$$f ] || [ -z "$$at" ] || ln -sf "$$at" '$(BUILD)'/$$f; \
	done

# The log of an earlier run must not be taken for this one's.  Meson's own
# status counts besides the sum: it may have ended before all tests had.
# Tests that only repeat what others do elsewhere are of the suite "long".
test: build
	@rm -f '$(BUILD)/meson-logs/testlog.json'
	@meson test -C '$(BUILD)' --no-rebuild --timeout-multiplier $(if $(HMM_TEST_LONG),16,4 --no-suite long); rc=$$?; \
	scripts/testsum '$(BUILD)/meson-logs/testlog.json' '$(BUILD)/test-summary' \
		'$(BUILD)/meson-info/intro-tests.json' && exit $$rc

test-long:
	@HMM_TEST_LONG=1 $(MAKE) --no-print-directory test

torture: build
	@scripts/deps --for torture
	@test/torture/torture.py '$(BUILD)' $(if $(HOURS),--minutes $$(($(HOURS) * 60)))

stress: build
	@scripts/deps --for torture
	@test/torture/torture.py '$(BUILD)' stress --all $(PART)

programs: build
	@scripts/deps --for programs
	@test/programs/programs.py '$(BUILD)' --table '$(BUILD)/programs.md'

demo: build
	@examples/demo/demo --hmm '$(BUILD)/hmm' --out '$(BUILD)/demo'

bench: build
	@scripts/deps --for bench
	@meson setup --reconfigure '$(BUILD)' >/dev/null && ninja -C '$(BUILD)' --quiet
	@meson test -C '$(BUILD)' --no-rebuild --benchmark --verbose

bench-scale: build
	@scripts/deps --for bench
	@bench/run/scale.py '$(BUILD)' '$(BUILD)/bench-scale'

kernel-suite: build
	@scripts/kernel-suite '$(BUILD)' $(KERNEL_SOURCE)

FUZZ_SOURCES = test/fuzz/tier.c src/drivers/area.c src/drivers/fail.c src/drivers/ofi/seal.c src/drivers/ofi/store.c \
	src/drivers/ofi/wire.c
SECONDS ?= 60
fuzz:
	@scripts/deps --for fuzz
	@mkdir -p '$(BUILD)/fuzz'
	@clang -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -D_GNU_SOURCE -Iinclude -Isrc \
		$$(pkg-config --cflags libfabric libsodium) $(FUZZ_SOURCES) -o '$(BUILD)/fuzz/tier' \
		$$(pkg-config --libs libsodium)
	@'$(BUILD)/fuzz/tier' -max_total_time=$(SECONDS) -max_len=4096 -verbosity=0 -print_final_stats=1 \
		-artifact_prefix='$(BUILD)/fuzz/'

model: deps
	@test/model/model.py

# Only what runs on mocked events: who serves its own page faults is beyond what the sanitizer follows.
TSAN_TESTS = umm_race_test umm_notifier_test
tsan: deps
	@[ -e '$(BUILD)/tsan/build.ninja' ] || \
		meson setup -Db_sanitize=thread -Db_lundef=false '$(BUILD)/tsan' >'$(BUILD)/tsan.log' || \
		{ cat '$(BUILD)/tsan.log'; exit 1; }
	@ninja -C '$(BUILD)/tsan' --quiet $(TSAN_TESTS:%=test/unit/umm/%)
	@for t in $(TSAN_TESTS); do echo "$$t"; '$(BUILD)'/tsan/test/unit/umm/$$t || exit 1; done

# Each in a build of its own.
ASAN_OPTIONS ?= detect_leaks=1
asan: deps
	@[ -e '$(BUILD)/asan/build.ninja' ] || \
		meson setup -Db_sanitize=address,undefined -Db_lundef=false '$(BUILD)/asan' >'$(BUILD)/asan.log' || \
		{ cat '$(BUILD)/asan.log'; exit 1; }
	@ninja -C '$(BUILD)/asan' --quiet $$(scripts/suite-programs '$(BUILD)/asan' unit)
	@ASAN_OPTIONS='$(ASAN_OPTIONS)' UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
		meson test -C '$(BUILD)/asan' --no-rebuild --suite unit --timeout-multiplier 8

asan-run tsan-run: build
	@scripts/instrumented-run '$(BUILD)' $(@:-run=) $(TESTS)

# The tests that run in a build of their own, and then those of hmm run, with a supervisor of that build.
COVERAGE_SUITES = unit conform ofi examples inject
coverage: build
	@scripts/deps --for coverage
	@[ -e '$(BUILD)/coverage/build.ninja' ] || \
		meson setup -Db_coverage=true '$(BUILD)/coverage' >'$(BUILD)/coverage.log' || \
		{ cat '$(BUILD)/coverage.log'; exit 1; }
	@find '$(BUILD)/coverage' -name '*.gcda' -delete
	@ninja -C '$(BUILD)/coverage' --quiet hmm $$(scripts/suite-programs '$(BUILD)/coverage' $(COVERAGE_SUITES))
	@meson test -C '$(BUILD)/coverage' --no-rebuild $(COVERAGE_SUITES:%=--suite %) --timeout-multiplier 4 \
		>'$(BUILD)/coverage.log'; tail -12 '$(BUILD)/coverage.log' | head -8
	@scripts/instrumented-run '$(BUILD)' coverage >'$(BUILD)/coverage.log'; tail -12 '$(BUILD)/coverage.log' | head -8
	@gcovr -r . '$(BUILD)/coverage' --filter src/umm/ --filter src/hmm/ --filter src/drivers/ \
		--gcov-ignore-parse-errors --txt '$(BUILD)/coverage.txt' --print-summary

# Those whose faults nobody but valgrind itself would have to serve.
VALGRIND_TESTS = hmm/hmm_iset_test hmm/hmm_residency_test drivers/driver_registry_test run/run_lines_test
valgrind: build
	@scripts/deps --for valgrind
	@for t in $(VALGRIND_TESTS) '../fuzz/fuzz-parse 2000'; do echo "$$t"; \
		valgrind -q --error-exitcode=9 --leak-check=full --errors-for-leak-kinds=definite '$(BUILD)'/test/unit/$$t >'$(BUILD)/valgrind.log' 2>&1 || \
		{ cat '$(BUILD)/valgrind.log'; exit 1; }; done

fuzz-read: deps
	@scripts/deps --for fuzz
	@[ -e '$(BUILD)/fuzz-read/build.ninja' ] || \
		CC=clang meson setup -Dwerror=false -Db_sanitize=address,undefined -Db_lundef=false '$(BUILD)/fuzz-read' \
		>'$(BUILD)/fuzz-read.log' || { cat '$(BUILD)/fuzz-read.log'; exit 1; }
	@ninja -C '$(BUILD)/fuzz-read' --quiet src/libhmmcore.a
	@clang -g -O1 -D_GNU_SOURCE -DHMM_LIBFUZZER -fsanitize=fuzzer,address,undefined -Iinclude -Iuapi -Isrc \
		test/fuzz/parse.c '$(BUILD)/fuzz-read/src/libhmmcore.a' $$(pkg-config --libs liburing liblz4 libxxhash) \
		$$(pkg-config --libs libsodium 2>/dev/null) -lpthread -o '$(BUILD)/fuzz-read/parse'
	@mkdir -p '$(BUILD)/fuzz-read/corpus'
	@'$(BUILD)/fuzz-read/parse' -max_len=2048 -max_total_time=$(SECONDS) -print_final_stats=1 '$(BUILD)/fuzz-read/corpus'

inject: build
	@'$(BUILD)/test/inject/inject-linked' --full
	@test/inject/run.py '$(BUILD)' --full $(if $(PART),--part $(PART))

late: build
	@test/inject/late.py '$(BUILD)' --all $(if $(PART),--part $(PART))

install: build
	@meson configure '$(BUILD)' --prefix '$(PREFIX)'
	@ninja -C '$(BUILD)' --quiet
	@DESTDIR='$(DESTDIR)' meson install -C '$(BUILD)' --no-rebuild
	@[ -n '$(DESTDIR)' ] || [ "$$(id -u)" -ne 0 ] || PATH="$$PATH:/sbin:/usr/sbin" ldconfig

format:
	@git ls-files '*.c' '*.h' | xargs clang-format -i

clean:
	@rm -rf '$(BUILD)'
