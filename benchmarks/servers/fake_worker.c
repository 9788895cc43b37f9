/* A worker that answers at once, for load tests of what stands in front of it: one thread, epoll, HTTP/1.1 keep-alive.
 *
 *     fake_worker PORT REPLY [SECONDS]     answers every POST with the bytes of the file REPLY, every GET with
 *                                          {"weight_version": "0"}; ends by itself after SECONDS (default 600)
 *
 * Reads bodies with Content-Length and chunked ones that end in "0\r\n\r\n". PORT 0 takes a free one and prints it.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define LARGEST (8u << 20)
#define MOST 4096

struct connection {
    char *in;
    size_t have;
    const char *out;
    size_t left;
};

static struct connection connections[MOST];
static char *replies[2];
static size_t sizes[2];

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void make_reply(int which, const char *body, size_t length) {
    replies[which] = malloc(length + 128);
    int head = sprintf(replies[which], "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n\r\n", length);
    memcpy(replies[which] + head, body, length);
    sizes[which] = head + length;
}

static void load(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) die(path);
    char *body = malloc(LARGEST);
    make_reply(0, body, fread(body, 1, LARGEST, file));
    fclose(file);
    free(body);
    const char *version = "{\"weight_version\": \"0\", \"model_path\": \"m\", \"status\": \"ok\"}";
    make_reply(1, version, strlen(version));
}

/* Bytes of the first whole request in the buffer; 0 when more must come. */
static size_t whole(struct connection *c) {
    char *end = memmem(c->in, c->have, "\r\n\r\n", 4);
    if (!end) return 0;
    size_t head = end + 4 - c->in;
    *end = 0;
    char *length = strcasestr(c->in, "\r\ncontent-length:");
    char *chunked = strcasestr(c->in, "\r\ntransfer-encoding:");
    *end = '\r';
    if (length) {
        size_t all = head + strtoul(length + 17, NULL, 10);
        return c->have >= all ? all : 0;
    }
    if (chunked) return c->have > head && !memcmp(c->in + c->have - 5, "0\r\n\r\n", 5) ? c->have : 0;
    return head;
}

static void hang_up(int fd) {
    connections[fd].have = connections[fd].left = 0;
    close(fd);
}

/* Write what is left; 0 when the connection is gone. */
static int flush(int poll, int fd) {
    struct connection *c = &connections[fd];
    while (c->left) {
        ssize_t n = write(fd, c->out, c->left);
        if (n < 0 && errno == EAGAIN) break;
        if (n <= 0) return hang_up(fd), 0;
        c->out += n;
        c->left -= n;
    }
    struct epoll_event event = {.events = EPOLLIN | (c->left ? EPOLLOUT : 0), .data.fd = fd};
    if (c->left) epoll_ctl(poll, EPOLL_CTL_MOD, fd, &event);
    return 1;
}

static void serve(int poll, int fd) {
    struct connection *c = &connections[fd];
    if (!c->in) c->in = malloc(LARGEST + 1);
    ssize_t n = read(fd, c->in + c->have, LARGEST - c->have);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) return hang_up(fd);
    c->have += n;
    size_t used = whole(c);
    if (!used) return;
    int which = c->in[0] == 'G';
    memmove(c->in, c->in + used, c->have - used);
    c->have -= used;
    c->out = replies[which];
    c->left = sizes[which];
    flush(poll, fd);
}

int main(int argc, char **argv) {
    if (argc < 3) return fprintf(stderr, "usage: fake_worker PORT REPLY [SECONDS]\n"), 2;
    alarm(argc > 3 ? atoi(argv[3]) : 600);
    load(argv[2]);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), yes = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    if (bind(listener, (struct sockaddr *)&address, size) || listen(listener, 1024)) die("listen");
    getsockname(listener, (struct sockaddr *)&address, &size);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    int poll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener}, events[256];
    epoll_ctl(poll, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int ready = epoll_wait(poll, events, 256, -1);
        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) {
                while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                    if (fd >= MOST) { close(fd); continue; }
                    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
                    connections[fd].have = connections[fd].left = 0;
                    event = (struct epoll_event){.events = EPOLLIN, .data.fd = fd};
                    epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event);
                }
            } else if (events[i].events & EPOLLOUT) {
                if (flush(poll, fd) && !connections[fd].left) {
                    event = (struct epoll_event){.events = EPOLLIN, .data.fd = fd};
                    epoll_ctl(poll, EPOLL_CTL_MOD, fd, &event);
                }
            } else {
                serve(poll, fd);
            }
        }
    }
}
