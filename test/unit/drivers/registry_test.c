/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>

#include <cmocka.h>

#include "drivers/driver.h"
#include "hmm/size.h"
#include "pages.h"

static void test_sizes(void **state)
{
	static const struct {
		const char *text;
		uint64_t bytes;
	} good[] = {
		{"0", 0},
		{"4096", 4096},
		{"64K", 65536},
		{"64k", 65536},
		{"256M", 256ull << 20},
		{"1G", 1ull << 30},
		{"2t", 2ull << 40},
		{"3MiB", 3ull << 20},
		{"3MB", 3ull << 20},
		{"12B", 12},
		{"18446744073709551615", UINT64_MAX},
		{"16777215T", 16777215ull << 40},
	};
	static const char *const bad[] = {
		"",
		" 1",
		"1 ",
		"-1",
		"+1",
		"M",
		"1X",
		"1MM",
		"1iB",
		"1Mi",
		"0x10",
		"1.5G",
		"18446744073709551616",
		"16777216T",
		"99999999999999999999999",
		"1M,",
		"1%",
	};
	uint64_t bytes;

	for (unsigned i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
		assert_int_equal(hmm_size_parse(good[i].text, &bytes), 0);
		assert_true(bytes == good[i].bytes);
	}
	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		bytes = 42;
		assert_int_equal(hmm_size_parse(bad[i], &bytes), -EINVAL);
		assert_int_equal(bytes, 42);
	}
	assert_int_equal(hmm_size_parse(NULL, &bytes), -EINVAL);
}

static void test_unknown(void **state)
{
	static const char *const bad[] = {"lz", "lz44", "LZ4", "nvme:/dev/x", "file,lz4", " lz4", ":lz4"};
	struct hmm_device *dev;
	char err[300], small[8];

	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		assert_int_equal(hmm_device_open(bad[i], &dev, err, sizeof(err)), -ENODEV);
		assert_null(dev);
		assert_non_null(strstr(err, "lz4"));
		assert_non_null(strstr(err, "file:"));
		assert_null(strchr(err, '\n'));
	}
	assert_int_equal(hmm_device_open("", &dev, err, sizeof(err)), -EINVAL);
	assert_int_equal(hmm_device_open(NULL, &dev, err, sizeof(err)), -EINVAL);
	assert_int_equal(hmm_device_open("nothing", &dev, NULL, 0), -ENODEV);
	assert_int_equal(hmm_device_open("nothing", &dev, small, sizeof(small)), -ENODEV);
	assert_int_equal(strlen(small), sizeof(small) - 1);
}

static void test_spec_is_kept(void **state)
{
	struct hmm_device *dev;
	char err[100] = "old";

	assert_int_equal(hmm_device_open("lz4:1M,raw", &dev, err, sizeof(err)), 0);
	assert_string_equal(dev->spec, "lz4:1M,raw");
	assert_string_equal(dev->ops->name, "lz4");
	assert_string_equal(err, "");
	hmm_device_close(dev);
	hmm_device_close(NULL);
}

static void test_chain(void **state)
{
	static const struct {
		const char *chain;
		const char *spec[4];
	} good[] = {
		{"", {NULL}},
		{"lz4", {"lz4"}},
		{"lz4,file:/var/tmp", {"lz4", "file:/var/tmp"}},
		{"lz4:1G,raw,file:/var/tmp,10G", {"lz4:1G,raw", "file:/var/tmp,10G"}},
		{"faulty:in=1,out=2:lz4:1M,raw,lz4", {"faulty:in=1,out=2:lz4:1M,raw", "lz4"}},
		{"file:/a,b,lz4", {"file:/a,b", "lz4"}},
		{"lz4,lz4,lz4", {"lz4", "lz4", "lz4"}},
	};
	char spec[40];

	for (unsigned i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
		const char *at = good[i].chain;
		unsigned n = 0;
		int rc;

		while ((rc = hmm_chain_next(&at, spec, sizeof(spec))) == 1) {
			assert_non_null(good[i].spec[n]);
			assert_string_equal(spec, good[i].spec[n]);
			n++;
		}
		assert_int_equal(rc, 0);
		assert_null(good[i].spec[n]);
	}

	const char *bad = "lz4,";

	assert_int_equal(hmm_chain_next(&bad, spec, sizeof(spec)), 1);
	assert_string_equal(spec, "lz4");
	assert_int_equal(hmm_chain_next(&bad, spec, sizeof(spec)), -EINVAL);
	bad = "lz4,nosuch";
	assert_int_equal(hmm_chain_next(&bad, spec, sizeof(spec)), 1);
	assert_string_equal(spec, "lz4");
	assert_int_equal(hmm_chain_next(&bad, spec, sizeof(spec)), 1);
	assert_string_equal(spec, "nosuch");
	bad = ",lz4";

	assert_int_equal(hmm_chain_next(&bad, spec, sizeof(spec)), -EINVAL);
	bad = "file:/a/path/that/is/longer/than/forty/characters";
	assert_int_equal(hmm_chain_next(&bad, spec, sizeof(spec)), -ENAMETOOLONG);
}

static void test_faulty(void **state)
{
	struct hmm_device *dev;
	char page[HMM_PAGE_SIZE];
	hmm_handle_t h, h2;

	assert_int_equal(hmm_device_open("faulty:in=3:lz4", &dev, NULL, 0), 0);
	assert_true(dev->ops->caps & HMM_DEV_RAM);
	assert_int_equal(put_in(dev, TEXT, 1, &h), 1);
	assert_int_equal(put_in(dev, TEXT, 2, &h2), 1);
	for (unsigned i = 0; i < 3; i++) {
		hmm_handle_t none = 0;

		assert_int_equal(put_in(dev, TEXT, 3, &none), -EIO);
		assert_true(none == HMM_HANDLE_NONE);
	}
	assert_int_equal(stats_of(dev).errors, 3);
	assert_int_equal(stats_of(dev).pages, 2);
	assert_true(reads_as(dev, h, TEXT, 1));
	assert_true(reads_as(dev, h2, TEXT, 2));
	dev->ops->get(dev, &h, 1);
	assert_true(dev->ops->shared(dev, h));
	dev->ops->put(dev, &h, 1);
	dev->ops->put(dev, &h, 1);
	assert_int_equal(stats_of(dev).pages, 1);
	dev->ops->trim(dev, SIZE_MAX);
	hmm_device_close(dev);

	assert_int_equal(hmm_device_open("faulty:out=2:lz4:1M,raw", &dev, NULL, 0), 0);
	assert_int_equal(put_in(dev, INCOMPRESSIBLE, 1, &h), 1);
	assert_true(reads_as(dev, h, INCOMPRESSIBLE, 1));
	assert_int_equal(get_out(dev, h, page), -EIO);
	assert_false(page_is(page, INCOMPRESSIBLE, 1));
	assert_int_equal(get_out(dev, h, page), -EIO);
	hmm_device_close(dev);

	/* One page of a batch of two. */
	assert_int_equal(hmm_device_open("faulty:sum=2,out=9:lz4", &dev, NULL, 0), 0);
	assert_int_equal(put_in(dev, TEXT, 1, &h), 1);

	char other[HMM_PAGE_SIZE];
	hmm_handle_t two[2] = {h, h};
	void *dst[2] = {page, other};
	int status[2];

	assert_int_equal(dev->ops->copy_out(dev, two, dst, status, 2), -EBADMSG);
	assert_int_equal(status[0], 0);
	assert_int_equal(status[1], -EBADMSG);
	assert_true(page_is(page, TEXT, 1));
	hmm_device_close(dev);
}

static void test_faulty_arguments(void **state)
{
	static const char *const bad[] = {
		"faulty",
		"faulty:lz4",
		"faulty:in=:lz4",
		"faulty:in=0:lz4",
		"faulty:in=-1:lz4",
		"faulty:in=1",
		"faulty:in=1,:lz4",
		"faulty:up=1:lz4",
		"faulty:in=99999999999999999999999:lz4",
		"faulty:in=1:lz4:x",
	};
	struct hmm_device *dev;
	char err[300];

	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		assert_int_equal(hmm_device_open(bad[i], &dev, err, sizeof(err)), -EINVAL);
		assert_true(*err && !strchr(err, '\n'));
	}
	assert_int_equal(hmm_device_open("faulty:in=1:tape", &dev, err, sizeof(err)), -ENODEV);
	assert_non_null(strstr(err, "tape"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_sizes), cmocka_unit_test(test_unknown), cmocka_unit_test(test_spec_is_kept),
		cmocka_unit_test(test_chain), cmocka_unit_test(test_faulty),  cmocka_unit_test(test_faulty_arguments),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
