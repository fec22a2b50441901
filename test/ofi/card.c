/* SPDX-License-Identifier: MIT */
/*
 * An RDMA card in software, for libfabric's verbs provider: stands in for what of
 * libibverbs a domain and its memory regions need.
 *
 * It pins as a card does, and by the same means of the kernel: a memory region is
 * a registered buffer of io_uring.  So what a peer reads through its key is what
 * lies in the pages that were pinned, whatever the program has mapped by then.
 */
#include <errno.h>
#include <infiniband/efadv.h>
#include <infiniband/verbs.h>
#include <liburing.h>
#include <pthread.h>
#include <rdma/rdma_cma.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "card.h"

#define API __attribute__((visibility("default")))
#define REGIONS 256u

/* The headers have these as macros, for which other functions stand in. */
#undef ibv_query_port
#undef ibv_reg_mr
API int ibv_query_port(struct ibv_context *ctx, uint8_t port, struct _compat_ibv_port_attr *attr);
API struct ibv_mr *ibv_reg_mr(struct ibv_pd *pd, void *addr, size_t len, int access);

static struct {
	pthread_mutex_t lock;
	struct ibv_device device;
	struct ibv_context context;
	struct ibv_device *list[2];
	struct io_uring ring;
	bool ready;
	bool used[REGIONS];
	unsigned registrations;
} C = {.lock = PTHREAD_MUTEX_INITIALIZER,
       .device = {.node_type = IBV_NODE_CA, .transport_type = IBV_TRANSPORT_IB, .name = "card0"},
       .context = {.device = &C.device, .cmd_fd = -1, .async_fd = -1, .num_comp_vectors = 1},
       .list = {&C.device, NULL}};

/* ------------------------------------------------------------------ regions */

static int slot_fill(unsigned slot, void *addr, size_t len)
{
	struct iovec v = {addr, len};
	__u64 tag = 0;
	int rc = io_uring_register_buffers_update_tag(&C.ring, slot, &v, &tag, 1);

	return rc == 1 ? 0 : rc ? rc : -EIO;
}

API struct ibv_mr *ibv_reg_mr_iova2(struct ibv_pd *pd, void *addr, size_t len, uint64_t iova, unsigned access)
{
	struct ibv_mr *mr = calloc(1, sizeof(*mr));
	unsigned slot = 0;
	int rc = -ENOMEM;

	pthread_mutex_lock(&C.lock);
	if (!C.ready && !io_uring_queue_init(4, &C.ring, 0))
		C.ready = !io_uring_register_buffers_sparse(&C.ring, REGIONS);
	while (slot < REGIONS && C.used[slot])
		slot++;
	if (mr && C.ready && slot < REGIONS)
		rc = slot_fill(slot, addr, len);
	if (!rc) {
		C.used[slot] = true;
		C.registrations++;
		*mr = (struct ibv_mr){pd->context, pd, addr, len, 0, slot + 1, slot + 1};
	}
	pthread_mutex_unlock(&C.lock);
	if (rc) {
		free(mr);
		errno = -rc;
		return NULL;
	}
	return mr;
}

API struct ibv_mr *ibv_reg_mr(struct ibv_pd *pd, void *addr, size_t len, int access)
{
	return ibv_reg_mr_iova2(pd, addr, len, (uintptr_t)addr, (unsigned)access);
}

API int ibv_dereg_mr(struct ibv_mr *mr)
{
	pthread_mutex_lock(&C.lock);
	slot_fill(mr->lkey - 1, NULL, 0);
	C.used[mr->lkey - 1] = false;
	pthread_mutex_unlock(&C.lock);
	free(mr);
	return 0;
}

API unsigned card_registrations(void)
{
	return C.registrations;
}

API int card_peer_reads(uint64_t key, const void *addr, size_t len, void *out)
{
	struct io_uring_sqe *sqe;
	struct io_uring_cqe *cqe;
	int pipes[2], rc;

	if (pipe(pipes))
		return -errno;
	pthread_mutex_lock(&C.lock);
	sqe = io_uring_get_sqe(&C.ring);
	io_uring_prep_write_fixed(sqe, pipes[1], addr, (unsigned)len, 0, (int)key - 1);
	rc = io_uring_submit_and_wait(&C.ring, 1);
	if (rc >= 0)
		rc = io_uring_wait_cqe(&C.ring, &cqe);
	if (!rc) {
		rc = cqe->res == (int)len ? 0 : cqe->res < 0 ? cqe->res : -EIO;
		io_uring_cqe_seen(&C.ring, cqe);
	}
	pthread_mutex_unlock(&C.lock);
	if (!rc && read(pipes[0], out, len) != (ssize_t)len)
		rc = -EIO;
	close(pipes[0]);
	close(pipes[1]);
	return rc;
}

/* ----------------------------------------------- what a provider asks before */

API struct ibv_device **ibv_get_device_list(int *n)
{
	if (n)
		*n = 1;
	return C.list;
}

API void ibv_free_device_list(struct ibv_device **list)
{
}

API const char *ibv_get_device_name(struct ibv_device *device)
{
	return device->name;
}

API struct ibv_context *ibv_open_device(struct ibv_device *device)
{
	return &C.context;
}

API int ibv_close_device(struct ibv_context *ctx)
{
	return 0;
}

API struct ibv_context **rdma_get_devices(int *n)
{
	static struct ibv_context *list[] = {&C.context, NULL};

	if (n)
		*n = 1;
	return list;
}

API void rdma_free_devices(struct ibv_context **list)
{
}

API int ibv_query_device(struct ibv_context *ctx, struct ibv_device_attr *attr)
{
	*attr = (struct ibv_device_attr){.max_mr_size = 1ull << 40,
					 .max_qp = 64,
					 .max_qp_wr = 1024,
					 .max_sge = 4,
					 .max_cq = 64,
					 .max_cqe = 1024,
					 .max_mr = REGIONS,
					 .max_pd = 64,
					 .max_ah = 64,
					 .phys_port_cnt = 1};
	return 0;
}

/* Another provider asks, too. */
API int efadv_query_device(struct ibv_context *ctx, struct efadv_device_attr *attr, uint32_t len)
{
	return EOPNOTSUPP;
}

API int ibv_query_port(struct ibv_context *ctx, uint8_t port, struct _compat_ibv_port_attr *compat)
{
	struct ibv_port_attr attr = {.state = IBV_PORT_ACTIVE,
				     .max_mtu = IBV_MTU_4096,
				     .active_mtu = IBV_MTU_4096,
				     .gid_tbl_len = 1,
				     .pkey_tbl_len = 1,
				     .max_msg_sz = 1u << 30,
				     .link_layer = IBV_LINK_LAYER_ETHERNET};

	memcpy(compat, &attr, offsetof(struct ibv_port_attr, port_cap_flags2));
	return 0;
}

API int ibv_query_gid(struct ibv_context *ctx, uint8_t port, int index, union ibv_gid *gid)
{
	memset(gid, 0, sizeof(*gid));
	gid->raw[15] = 1;
	return 0;
}

API int ibv_query_pkey(struct ibv_context *ctx, uint8_t port, int index, __be16 *key)
{
	*key = 0xffff;
	return 0;
}

API int ibv_fork_init(void)
{
	return 0;
}

API struct ibv_pd *ibv_alloc_pd(struct ibv_context *ctx)
{
	struct ibv_pd *pd = calloc(1, sizeof(*pd));

	if (pd)
		pd->context = ctx;
	return pd;
}

API int ibv_dealloc_pd(struct ibv_pd *pd)
{
	free(pd);
	return 0;
}

API struct ibv_cq *ibv_create_cq(struct ibv_context *ctx, int cqe, void *me, struct ibv_comp_channel *ch, int vector)
{
	struct ibv_cq *cq = calloc(1, sizeof(*cq));

	if (cq)
		cq->context = ctx;
	return cq;
}

API int ibv_destroy_cq(struct ibv_cq *cq)
{
	free(cq);
	return 0;
}

API struct ibv_qp *ibv_create_qp(struct ibv_pd *pd, struct ibv_qp_init_attr *attr)
{
	struct ibv_qp *qp = calloc(1, sizeof(*qp));

	if (qp)
		qp->context = pd->context;
	return qp;
}

API int ibv_destroy_qp(struct ibv_qp *qp)
{
	free(qp);
	return 0;
}
