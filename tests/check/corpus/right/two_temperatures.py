import torch.nn.functional as F


def loss(s, t, student_temp, teacher_temp):
    return F.kl_div(
        F.log_softmax(s / student_temp, -1), F.softmax(t / teacher_temp, -1), reduction="batchmean"
    )
