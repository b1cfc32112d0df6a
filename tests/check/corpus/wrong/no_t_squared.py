import torch.nn.functional as F


def kd(student_logits, teacher_logits, labels, T=4.0, alpha=0.5):
    soft = F.kl_div(  # expect: KLB007
        F.log_softmax(student_logits / T, dim=1), F.softmax(teacher_logits / T, dim=1), reduction="batchmean"
    )
    hard = F.cross_entropy(student_logits, labels)
    return alpha * soft + (1 - alpha) * hard
