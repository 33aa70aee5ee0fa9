/* kvm_pin: keeps KVM's static keys as they are for as long as the process lives that it leaves behind and whose number it prints.
 *
 * Linux rewrites its own code when the first VM comes and the last one goes (preemption notifiers, in the scheduler), and so with the first vCPU
 * without a local APIC in the kernel and the first with one that is switched off. QEMU's emulation with a thread a CPU loses such a change now and
 * then: it goes on to execute the breakpoint that stood there in between, and the box hangs in the scheduler (docs/lab.md). With one of each
 * here no other VM's coming and going changes any code. */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define MSR_APIC_BASE 0x1b

static int vm_with(int kvm, int irqchip)
{
    int vm = ioctl(kvm, KVM_CREATE_VM, 0);
    if (vm >= 0 && irqchip && ioctl(vm, KVM_CREATE_IRQCHIP, 0)) return -1;
    return vm;
}

int main(void)
{
    struct {
        struct kvm_msrs head;
        struct kvm_msr_entry entry[1];
    } base = {.head.nmsrs = 1, .entry = {{.index = MSR_APIC_BASE}}};
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    int plain = vm_with(kvm, 0), chip = vm_with(kvm, 1);
    int without = ioctl(plain, KVM_CREATE_VCPU, 0);
    int software =
        ioctl(chip, KVM_CREATE_VCPU, 0); /* its APIC is switched off by its own register, as after power-on */
    int hardware = ioctl(chip, KVM_CREATE_VCPU, 1);
    if (without < 0 || software < 0 || hardware < 0 || ioctl(hardware, KVM_SET_MSRS, &base) != 1) {
        perror("lab: kvm_pin");
        return 1;
    }
    /* Whoever started this goes on when it is so, and gets the number of the process that stays. */
    pid_t stays = fork();
    if (stays < 0) {
        perror("lab: kvm_pin: fork");
        return 1;
    }
    if (stays > 0) {
        printf("%d\n", (int)stays);
        return 0;
    }
    for (;;) pause();
}
