import torch.nn.functional as F


def loss(student_logits, teacher_logits, T):
    q = F.log_softmax(student_logits / T, dim=-1)
    p = F.softmax(teacher_logits, dim=-1)
    return F.kl_div(q, p, reduction="batchmean") * T * T  # expect: KLB006
